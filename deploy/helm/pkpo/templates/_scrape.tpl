{{/* How a monitor of either kind scrapes. */}}
{{- define "pkpo.scrape" -}}
path: /metrics
{{- range $key := list "interval" "scrapeTimeout" "relabelings" "metricRelabelings" }}
{{- with get $ $key }}
{{ toYaml (dict $key .) }}
{{- end }}
{{- end }}
{{- end }}
