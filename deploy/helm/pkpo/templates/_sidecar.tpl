{{/*
For the pods of other charts that depend on this one with `pkpo.mode: sidecar`. The context of each is `.Subcharts.pkpo`.
From Kubernetes 1.29 on the sidecar is an init container that stays: it serves before the others start, and ends after
them, so that a Job completes. Before, it is a container among the others.
*/}}

{{- define "pkpo.sidecar.native" -}}
{{- if semverCompare ">=1.29-0" .Capabilities.KubeVersion.Version }}true{{ end }}
{{- end }}

{{/* Under `initContainers`. */}}
{{- define "pkpo.sidecar.initContainers" -}}
{{- if include "pkpo.sidecar.native" . -}}
- restartPolicy: Always
  {{- include "pkpo.sidecar.container" . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Under `containers`. */}}
{{- define "pkpo.sidecar.containers" -}}
{{- if not (include "pkpo.sidecar.native" .) -}}
- {{ include "pkpo.sidecar.container" . | nindent 2 | trim }}
{{- end }}
{{- end }}

{{- define "pkpo.sidecar.container" -}}
{{- include "pkpo.validate" . }}
{{- include "pkpo.container" (dict "context" . "sidecar" true) }}
{{- end }}

{{/* Under the `volumeMounts` of each container that calls pkpo. */}}
{{- define "pkpo.sidecar.volumeMounts" -}}
- name: pkpo-socket
  mountPath: {{ dir .Values.sidecar.socketPath }}
{{- end }}

{{/* Under `volumes`. */}}
{{- define "pkpo.sidecar.volumes" -}}
- name: pkpo-socket
  emptyDir:
    sizeLimit: 1Mi
- name: pkpo-tmp
  emptyDir:
    sizeLimit: 256Mi
{{- with .Values.extraVolumes }}
{{ include "pkpo.tpl" (dict "value" . "context" $) }}
{{- end }}
{{- end }}

{{/* Under `imagePullSecrets`: a pod has them, not a container. */}}
{{- define "pkpo.sidecar.imagePullSecrets" -}}
{{- include "pkpo.imagePullSecrets" . | trim }}
{{- end }}
