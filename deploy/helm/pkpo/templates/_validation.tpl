{{/* What the schema cannot say. Every complaint names its value and what it may be; all are told at once. */}}
{{- define "pkpo.validate" -}}
{{- $complaints := list }}
{{- $v := .Values }}
{{- $resources := include "pkpo.resources" . | fromYaml }}

{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "pkpo.fullname" .)) }}
{{- $complaints = append $complaints (printf "fullnameOverride: not set, and %s cannot name a Service; must be set" (include "pkpo.fullname" .)) }}
{{- end }}

{{- $ports := list $v.server.metricsPort $v.server.healthPort }}
{{- if eq $v.mode "server" }}{{ $ports = append $ports $v.server.port }}{{ end }}
{{- if ne (len $ports) (len (uniq $ports)) }}
{{- $complaints = append $complaints (printf "server.port, server.metricsPort, server.healthPort: %v, %v, %v; must differ" $v.server.port $v.server.metricsPort $v.server.healthPort) }}
{{- end }}

{{- range $key := list "host" "healthHost" "metricsHost" }}
{{- $host := get $v.server $key }}
{{- if or (hasPrefix "127." $host) (has $host (list "localhost" "::1")) }}
{{- if or (ne $key "host") (eq $v.mode "server") }}
{{- $complaints = append $complaints (printf "server.%s: %s, which nobody outside of the pod reaches; must be another" $key $host) }}
{{- end }}
{{- else if and (eq $host "0.0.0.0") (eq (join "," $v.service.ipFamilies) "IPv6") }}
{{- $complaints = append $complaints (printf "server.%s: 0.0.0.0 with service.ipFamilies IPv6; must be \"::\"" $key) }}
{{- end }}
{{- end }}
{{- with $v.strategy.rollingUpdate }}
{{- if and (has (toString .maxUnavailable) (list "0" "0%")) (has (toString .maxSurge) (list "0" "0%")) }}
{{- $complaints = append $complaints "strategy.rollingUpdate: maxUnavailable 0 and maxSurge 0; one must be more, or no pod is ever replaced" }}
{{- end }}
{{- end }}

{{- /* What several workers count is in files in the image's TMPDIR, /dev/shm, of which a container has 64 MiB; a run takes
22528 bytes of it for each worker. A value of null is the server's own default. */}}
{{- $workers := ternary 1 $v.server.workers (kindIs "invalid" $v.server.workers) | int64 }}
{{- $runs := ternary 64 $v.server.maxRunIds (kindIs "invalid" $v.server.maxRunIds) | int64 }}
{{- $room := div 67108864 22528 }}
{{- $elsewhere := false }}
{{- range include "pkpo.tpl" (dict "value" $v.extraVolumeMounts "context" $) | fromYamlArray }}
{{- if eq (clean .mountPath) "/dev/shm" }}{{ $elsewhere = true }}{{ end }}
{{- end }}
{{- range $v.extraEnv }}
{{- if eq .name "TMPDIR" }}{{ $elsewhere = true }}{{ end }}
{{- end }}
{{- if and (gt $workers 1) (gt (mul $workers $runs) $room) (not $elsewhere) }}
{{- $complaints = append $complaints (printf "server.maxRunIds: %d for each of %d server.workers; must be at most %d, or a volume be mounted at /dev/shm (extraVolumes, extraVolumeMounts)" $runs $workers (div $room $workers)) }}
{{- end }}

{{- $needed := add $v.drain.preStopSeconds (ceil $v.server.drainSeconds) $v.drain.marginSeconds }}
{{- if lt (include "pkpo.gracePeriod" . | int64) $needed }}
{{- $complaints = append $complaints (printf "terminationGracePeriodSeconds: %v; must be at least %d: drain.preStopSeconds %v, server.drainSeconds %v and drain.marginSeconds %v" $v.terminationGracePeriodSeconds $needed $v.drain.preStopSeconds $v.server.drainSeconds $v.drain.marginSeconds) }}
{{- end }}

{{- if $v.tls.enabled }}
{{- if and $v.tls.existingSecret $v.tls.certManager.enabled }}
{{- $complaints = append $complaints (printf "tls.existingSecret: %s, and tls.certManager.enabled; must be one of the two" $v.tls.existingSecret) }}
{{- else if not (or $v.tls.existingSecret $v.tls.certManager.enabled) }}
{{- $complaints = append $complaints "tls.enabled: true without a certificate; must come with tls.existingSecret or tls.certManager.enabled" }}
{{- end }}
{{- if and $v.tls.certManager.enabled (not $v.tls.certManager.issuerRef.name) }}
{{- $complaints = append $complaints "tls.certManager.issuerRef.name: not set; must name an issuer" }}
{{- end }}
{{- if and $v.tls.certManager.enabled $v.tls.clientAuthentication (not $v.tls.clientCaSecret) }}
{{- $complaints = append $complaints "tls.clientCaSecret: not set; must be, for not everyone whom the issuer knows is a client" }}
{{- end }}
{{- else if $v.tls.clientAuthentication }}
{{- $complaints = append $complaints "tls.clientAuthentication: true without tls.enabled, which it needs" }}
{{- end }}
{{- if and $v.tokens.existingSecret $v.tokens.values }}
{{- $complaints = append $complaints (printf "tokens.existingSecret: %s, and tokens.values; must be one of the two" $v.tokens.existingSecret) }}
{{- end }}

{{- if and $v.service.nodePort (eq $v.service.type "ClusterIP") }}
{{- $complaints = append $complaints (printf "service.nodePort: %v with service.type ClusterIP, which has none; must be null, or the type NodePort or LoadBalancer" $v.service.nodePort) }}
{{- end }}

{{- $pods := int64 $v.replicaCount }}
{{- with $v.autoscaling }}
{{- if .enabled }}
{{- $pods = int64 .minReplicas }}
{{- if gt (int64 .minReplicas) (int64 .maxReplicas) }}
{{- $complaints = append $complaints (printf "autoscaling.minReplicas: %v; must be at most autoscaling.maxReplicas, %v" .minReplicas .maxReplicas) }}
{{- end }}
{{- if not (or .targetCPUUtilizationPercentage .targetOpenCalls .metrics) }}
{{- $complaints = append $complaints "autoscaling: nothing to scale by; must have targetCPUUtilizationPercentage, targetOpenCalls or metrics" }}
{{- end }}
{{- /* Kubernetes takes a limit for the request where that is not set. */}}
{{- if and .targetCPUUtilizationPercentage (not (or (dig "requests" "cpu" "" $resources) (dig "limits" "cpu" "" $resources))) }}
{{- $complaints = append $complaints "resources.requests.cpu: not set; must be, for autoscaling.targetCPUUtilizationPercentage is a share of it" }}
{{- end }}
{{- end }}
{{- end }}
{{- range $v.extraEnv }}
{{- if hasPrefix "PKPO_" .name }}
{{- $complaints = append $complaints (printf "extraEnv: %s has no effect beside its flag; must be a value under server" .name) }}
{{- end }}
{{- end }}
{{- with $v.podDisruptionBudget }}
{{- if and .enabled (or (has (toString .maxUnavailable) (list "0" "0%")) (eq (toString .minAvailable) "100%")) }}
{{- $complaints = append $complaints "podDisruptionBudget: lets no pod go; must let one, or no node can be drained" }}
{{- end }}
{{- if and .enabled (not (kindIs "invalid" .minAvailable)) }}
{{- if not (kindIs "invalid" .maxUnavailable) }}
{{- $complaints = append $complaints (printf "podDisruptionBudget: minAvailable %v and maxUnavailable %v; must be one of the two" .minAvailable .maxUnavailable) }}
{{- else if and (not (kindIs "string" .minAvailable)) (gt $pods 1) (ge (int64 .minAvailable) $pods) }}
{{- $complaints = append $complaints (printf "podDisruptionBudget.minAvailable: %v of %d pods; must be fewer, or no node can be drained" .minAvailable $pods) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and $v.monitoring.podMonitor.enabled $v.monitoring.serviceMonitor.enabled }}
{{- $complaints = append $complaints "monitoring: podMonitor.enabled and serviceMonitor.enabled; must be one of the two, or every sample counts twice" }}
{{- end }}

{{- if eq $v.mode "sidecar" }}
{{- if gt (int64 $v.server.workers) 1 }}
{{- $complaints = append $complaints (printf "server.workers: %v with mode sidecar; must be 1, since processes cannot share a unix socket" $v.server.workers) }}
{{- end }}
{{- range $key, $set := dict "tls.enabled" $v.tls.enabled "tokens" (or $v.tokens.existingSecret $v.tokens.values) "autoscaling.enabled" $v.autoscaling.enabled "monitoring.serviceMonitor.enabled" $v.monitoring.serviceMonitor.enabled }}
{{- if $set }}
{{- $complaints = append $complaints (printf "%s: set with mode sidecar, which has no use for it" $key) }}
{{- end }}
{{- end }}
{{- end }}

{{- with $complaints }}
{{- fail (join "\n" . | printf "values that cannot be used:\n%s") }}
{{- end }}
{{- end }}
