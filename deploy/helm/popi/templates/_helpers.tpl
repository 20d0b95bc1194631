{{- define "popi.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "popi.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "popi.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "popi.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "popi.selector" -}}
app.kubernetes.io/name: {{ include "popi.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "popi.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "popi.selector" . }}
{{- end }}

{{- define "popi.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "popi.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "popi.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* shutdown_delay_s plus drain_timeout_s (or popi's defaults), plus 15 seconds to close the store. */}}
{{- define "popi.gracePeriod" -}}
{{- $server := .Values.settings.server | default dict }}
{{- $notice := hasKey $server "shutdown_delay_s" | ternary $server.shutdown_delay_s 0 | float64 }}
{{- $drain := hasKey $server "drain_timeout_s" | ternary $server.drain_timeout_s 30 | float64 }}
{{- addf $notice $drain 15 | ceil | int64 }}
{{- end }}

{{/* The environment variables with keys that the gateway's settings refer to, as a JSON list. */}}
{{- define "popi.gatewayKeyEnvs" -}}
{{- $proxy := .Values.settings.proxy | default dict }}
{{- $names := list }}
{{- with .Values.upstreamKeyEnv }}{{ $names = append $names . }}{{ end }}
{{- range $proxy.upstreams }}{{ with .key_env }}{{ $names = append $names . }}{{ end }}{{ end }}
{{- with ($proxy.jwt | default dict).key_env }}{{ $names = append $names . }}{{ end }}
{{- if not .Values.worker.enabled }}
{{- range fromJsonArray (include "popi.inferenceKeyEnvs" .) }}{{ $names = append $names . }}{{ end }}
{{- end }}
{{- $names | uniq | toJson }}
{{- end }}

{{/* The same for the inference model; without a `key_env` it reads its API's usual variable. */}}
{{- define "popi.inferenceKeyEnvs" -}}
{{- $inference := .Values.settings.inference | default dict }}
{{- $usual := eq ($inference.protocol | default "openai") "anthropic" | ternary "ANTHROPIC_API_KEY" "OPENAI_API_KEY" }}
{{- if not $inference.url }}[]
{{- else if $inference.key_env }}{{ list $inference.key_env | toJson }}
{{- else if hasKey .Values.secrets.keys $usual }}{{ list $usual | toJson }}
{{- else }}[]
{{- end }}
{{- end }}

{{/* `env` entries for the store and those variables. Takes a dict: root, names (JSON), extra (extraEnv). */}}
{{- define "popi.env" -}}
{{- $root := .root }}
{{- $extra := .extra }}
- name: POPI_STORE
  valueFrom:
    secretKeyRef: {{ $root.Values.secrets.store | toJson }}
{{- range fromJsonArray .names }}
{{- $name := . }}
{{- if hasKey $root.Values.secrets.keys $name }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef: {{ get $root.Values.secrets.keys $name | toJson }}
{{- else }}
{{- $given := false }}
{{- range $extra }}{{ if eq .name $name }}{{ $given = true }}{{ end }}{{ end }}
{{- if not $given }}
{{- fail (printf "the settings refer to the variable %s, but neither secrets.keys nor extraEnv has it; add secrets.keys.%s: {name: SECRET, key: KEY}" $name $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A value as TOML on one line. Helm reads all YAML numbers as floats; whole ones are written as integers. */}}
{{- define "popi.tomlValue" -}}
{{- if kindIs "map" . -}}
{
{{- $first := true -}}
{{- range $name, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}
{{- if not $first }},{{ end }} {{ toJson $name }} = {{ include "popi.tomlValue" $value -}}
{{- $first = false -}}
{{- end -}}
{{- end }} }
{{- else if kindIs "slice" . -}}
[
{{- range $index, $value := . -}}
{{- if $index }}, {{ end }}{{ include "popi.tomlValue" $value -}}
{{- end -}}
]
{{- else if kindIs "float64" . -}}
{{- if eq . (floor .) }}{{ printf "%.0f" . }}{{ else }}{{ toJson . }}{{ end -}}
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end }}

{{- define "popi.toml" -}}
{{- $settings := deepCopy .Values.settings }}
{{- if .Values.secrets.idSecret.name }}
{{- $_ := set $settings "proxy" (merge (dict "id_secret_env" "POPI_ID_SECRET") ($settings.proxy | default dict)) }}
{{- end }}
{{- range $table, $values := $settings }}
{{- if $values }}
[{{ $table }}]
{{- range $name, $value := $values }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }} = {{ include "popi.tomlValue" $value }}
{{- end }}
{{- end }}
{{ end }}
{{- end }}
{{- end }}

{{/* The pod spec shared by both Deployments. Takes a dict: root, of (gateway or worker), name. */}}
{{- define "popi.podSpec" -}}
{{- $root := .root }}
serviceAccountName: {{ include "popi.serviceAccount" $root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml $root.Values.podSecurityContext | nindent 2 }}
{{- with .of.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .of.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- if .of.topologySpreadConstraints }}
  {{- toYaml .of.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "popi.selector" $root | nindent 8 }}
        app.kubernetes.io/component: {{ .name }}
  {{- end }}
volumes:
  - name: settings
    configMap:
      name: {{ include "popi.fullname" $root }}
  - name: tmp
    emptyDir:
      sizeLimit: 1Gi
  {{- with .of.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "popi.volumeMounts" -}}
- name: settings
  mountPath: /etc/popi
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- with .extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}
