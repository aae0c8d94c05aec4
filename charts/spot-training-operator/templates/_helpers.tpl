{{- define "spot.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "spot.labels" -}}
app.kubernetes.io/name: spot-training-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "spot.selector" -}}
app.kubernetes.io/name: spot-training-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
