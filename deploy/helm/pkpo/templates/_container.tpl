{{/* The container, of the Deployment and of a sidecar. Argument: the context, and whether it is a sidecar. */}}
{{- define "pkpo.container" -}}
{{- $values := .context.Values -}}
name: pkpo
image: {{ include "pkpo.image" .context }}
imagePullPolicy: {{ $values.image.pullPolicy }}
args:
  {{- include "pkpo.args" . | nindent 2 }}
{{- with $values.extraEnv }}
env:
  {{- include "pkpo.tpl" (dict "value" . "context" $.context) | nindent 2 }}
{{- end }}
{{- with $values.extraEnvFrom }}
envFrom:
  {{- include "pkpo.tpl" (dict "value" . "context" $.context) | nindent 2 }}
{{- end }}
ports:
  {{- if not .sidecar }}
  - name: grpc
    containerPort: {{ $values.server.port }}
    protocol: TCP
  {{- end }}
  - name: metrics
    containerPort: {{ $values.server.metricsPort }}
    protocol: TCP
  - name: health
    containerPort: {{ $values.server.healthPort }}
    protocol: TCP
{{- range $kind := list "startup" "readiness" "liveness" }}
{{- with get $values.probes $kind }}
{{ $kind }}Probe:
  grpc:
    port: {{ $values.server.healthPort }}
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- if and (not .sidecar) $values.drain.preStopSeconds }}
lifecycle:
  preStop:
    {{- if semverCompare ">=1.30-0" .context.Capabilities.KubeVersion.Version }}
    sleep:
      seconds: {{ $values.drain.preStopSeconds }}
    {{- else }}
    # The image has no shell to sleep in.
    exec:
      command: ["python3", "-c", "import time; time.sleep({{ $values.drain.preStopSeconds }})"]
    {{- end }}
{{- end }}
resources:
  {{- include "pkpo.resources" .context | nindent 2 }}
securityContext:
  {{- toYaml $values.securityContext | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  {{- include "pkpo.mounts" . | nindent 2 }}
{{- end }}

{{/* Every value under `server` is the flag of its name; what else the server is told follows from the other values. */}}
{{- define "pkpo.args" -}}
{{- $values := .context.Values }}
{{- $unread := ternary (list "host" "port") list .sidecar }}
{{- range $key, $value := merge (dict "threads" (include "pkpo.threads" .context)) $values.server }}
{{- $flag := kebabcase $key }}
{{- if has $key $unread }}
{{- else if kindIs "bool" $value }}
- {{ printf "--%s%s" (ternary "" "no-" $value) $flag | quote }}
{{- else if not (kindIs "invalid" $value) }}
- {{ printf "--%s=%s" $flag (include "pkpo.text" $value) | quote }}
{{- end }}
{{- end }}
{{- if .sidecar }}
- {{ printf "--unix-socket=%s" $values.sidecar.socketPath | quote }}
{{- with $values.sidecar.socketMode }}
- {{ printf "--unix-socket-mode=%s" . | quote }}
{{- end }}
{{- end }}
{{- if $values.tls.enabled }}
- "--tls-certificate=/etc/pkpo/tls/tls.crt"
- "--tls-key=/etc/pkpo/tls/tls.key"
{{- if $values.tls.clientAuthentication }}
- "--tls-client-ca=/etc/pkpo/tls/ca.crt"
{{- end }}
{{- end }}
{{- if or $values.tokens.existingSecret $values.tokens.values }}
- "--tokens=/etc/pkpo/tokens"
{{- end }}
{{- end }}

{{/* Secrets are mounted as folders, never by subPath: only a folder follows a Secret that changes. */}}
{{- define "pkpo.mounts" -}}
{{- $values := .context.Values -}}
- name: {{ ternary "pkpo-tmp" "tmp" .sidecar }}
  mountPath: /tmp
{{- if .sidecar }}
{{ include "pkpo.sidecar.volumeMounts" .context }}
{{- end }}
{{- if $values.tls.enabled }}
- name: tls
  mountPath: /etc/pkpo/tls
  readOnly: true
{{- end }}
{{- if or $values.tokens.existingSecret $values.tokens.values }}
- name: tokens
  mountPath: /etc/pkpo/tokens
  readOnly: true
{{- end }}
{{- with $values.extraVolumeMounts }}
{{ include "pkpo.tpl" (dict "value" . "context" $.context) }}
{{- end }}
{{- end }}
