{{/* Names. A release's name has at most 53 characters, so that every name below fits the 63 of a Service. */}}

{{- define "pkpo.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "pkpo.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "pkpo.headlessName" -}}
{{ include "pkpo.fullname" . }}-headless
{{- end }}

{{- define "pkpo.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "pkpo.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "pkpo.tlsSecretName" -}}
{{- default (printf "%s-tls" (include "pkpo.fullname" .)) .Values.tls.existingSecret }}
{{- end }}

{{- define "pkpo.tokensSecretName" -}}
{{- default (printf "%s-tokens" (include "pkpo.fullname" .)) .Values.tokens.existingSecret }}
{{- end }}

{{- define "pkpo.image" -}}
{{- with .Values.image }}
{{- with default .registry $.Values.global.imageRegistry }}{{ . }}/{{ end }}{{ .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ default $.Chart.AppVersion .tag }}{{ end }}
{{- end }}
{{- end }}

{{/* Those of all charts of a release, and this one's, each once; the former may be names alone. */}}
{{- define "pkpo.imagePullSecrets" -}}
{{- $names := list }}
{{- range concat (default list .Values.global.imagePullSecrets) .Values.imagePullSecrets }}
{{- if kindIs "string" . }}
{{- $names = append $names . }}
{{- else }}
{{- $names = append $names .name }}
{{- end }}
{{- end }}
{{- range uniq $names }}
- name: {{ . }}
{{- end }}
{{- end }}

{{/* Labels. */}}

{{- define "pkpo.releaseLabels" -}}
app.kubernetes.io/name: {{ include "pkpo.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pkpo.selectorLabels" -}}
{{ include "pkpo.releaseLabels" . }}
app.kubernetes.io/component: server
{{- end }}

{{/* Of the pods that hold a sidecar: the chart's only hold on them. */}}
{{- define "pkpo.sidecar.labels" -}}
pkpo-sidecar: {{ .Release.Name }}
{{- end }}

{{- define "pkpo.labels" -}}
{{- $labels := include "pkpo.releaseLabels" . | fromYaml }}
{{- $_ := set $labels "app.kubernetes.io/version" .Chart.AppVersion }}
{{- $_ := set $labels "app.kubernetes.io/managed-by" .Release.Service }}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") }}
{{- toYaml (merge $labels .Values.commonLabels) }}
{{- end }}

{{/* The metadata every object begins with. Argument: the context, and the object's name, labels and annotations. */}}
{{- define "pkpo.metadata" -}}
name: {{ .name }}
namespace: {{ .context.Release.Namespace }}
labels:
  {{- toYaml (merge (include "pkpo.labels" .context | fromYaml) (default dict .labels)) | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Values as text. */}}

{{/* Helm reads numbers as floats, and would write 67108864 as 6.7108864e+07. */}}
{{- define "pkpo.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* A value whose text is a template. Argument: it, and the context. */}}
{{- define "pkpo.tpl" -}}
{{- tpl (kindIs "string" .value | ternary .value (toYaml .value)) .context }}
{{- end }}

{{/* Numbers that follow from others. */}}

{{- define "pkpo.gracePeriod" -}}
{{- $needed := add .Values.drain.preStopSeconds (ceil .Values.server.drainSeconds) .Values.drain.marginSeconds }}
{{- default $needed .Values.terminationGracePeriodSeconds | int64 }}
{{- end }}

{{- define "pkpo.resources" -}}
{{- if .Values.resources }}
{{- toYaml .Values.resources }}
{{- else }}
{{- $workers := int64 .Values.server.workers -}}
requests:
  cpu: {{ $workers | quote }}
  memory: {{ mul $workers 512 }}Mi
limits:
  memory: {{ mul $workers 2 }}Gi
{{- end }}
{{- end }}

{{/* Whole cores of a quantity such as 1500m, 2 or 0.5, rounded up. */}}
{{- define "pkpo.cores" -}}
{{- $text := toString . }}
{{- if hasSuffix "m" $text }}
{{- divf (trimSuffix "m" $text | float64) 1000 | ceil | int64 }}
{{- else }}
{{- float64 $text | ceil | int64 }}
{{- end }}
{{- end }}

{{/* The server would count the node's processors: it sees no CPU request, and not every limit. */}}
{{- define "pkpo.threads" -}}
{{- if int64 .Values.server.threads }}
{{- int64 .Values.server.threads }}
{{- else }}
{{- $resources := include "pkpo.resources" . | fromYaml }}
{{- $cpu := dig "limits" "cpu" (dig "requests" "cpu" "" $resources) $resources }}
{{- if $cpu }}
{{- max 1 (div (include "pkpo.cores" $cpu) (int64 .Values.server.workers)) }}
{{- else }}0{{ end }}
{{- end }}
{{- end }}
