{{- define "profilerd.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "profilerd.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "profilerd.labels" -}}
{{ include "profilerd.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: profiler
app.kubernetes.io/part-of: skywalking
{{- end -}}

{{- define "profilerd.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "profilerd.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "profilerd.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* profilerd.yaml: what the chart's values say, and config over it. */}}
{{- define "profilerd.config" -}}
{{- $oap := dict "backends" .Values.oap.backends -}}
{{- with .Values.oap.query }}{{ $_ := set $oap "query" . }}{{ end -}}
{{- if .Values.oap.token.secretName -}}
{{- $_ := set $oap "token_file" (printf "/run/secrets/profilerd/token/%s" .Values.oap.token.key) -}}
{{- end -}}
{{- if .Values.oap.tls.enabled -}}
{{- $tls := dict "enabled" true -}}
{{- with .Values.oap.tls.serverName }}{{ $_ := set $tls "server_name" . }}{{ end -}}
{{- if or .Values.oap.tls.ca.configMapName .Values.oap.tls.ca.secretName -}}
{{- $_ := set $tls "ca_file" (printf "/run/secrets/profilerd/ca/%s" .Values.oap.tls.ca.key) -}}
{{- end -}}
{{- if .Values.oap.tls.clientSecretName -}}
{{- $_ := set $tls "cert_file" "/run/secrets/profilerd/client/tls.crt" -}}
{{- $_ := set $tls "key_file" "/run/secrets/profilerd/client/tls.key" -}}
{{- end -}}
{{- $_ := set $oap "tls" $tls -}}
{{- end -}}
{{- $config := dict
  "oap" $oap
  "kubernetes" (dict "enabled" true)
  "metrics" (printf "0.0.0.0:%d" (int .Values.metrics.port))
  "state_dir" "/var/lib/profilerd/state"
-}}
{{- mergeOverwrite $config (deepCopy .Values.config) | toYaml -}}
{{- end -}}

{{/* AppArmor before Kubernetes 1.30. */}}
{{- define "profilerd.appArmorAnnotation" -}}
{{- if eq .Values.appArmorProfile.type "Localhost" -}}
localhost/{{ .Values.appArmorProfile.localhostProfile }}
{{- else if eq .Values.appArmorProfile.type "RuntimeDefault" -}}
runtime/default
{{- else -}}
unconfined
{{- end -}}
{{- end -}}
