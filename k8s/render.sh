#!/bin/sh
# Writes k8s/overlays/*/rayjob.yaml, the template that the launcher is given: the RayJob of each overlay's rayjob/.
# usage: render.sh KUBECTL
set -eu
cd "$(dirname "$0")/overlays"
for overlay in */; do
    overlay=${overlay%/}
    "$1" kustomize "$overlay/rayjob" | awk '
        /^---$/ { if (document ~ /\nkind: RayJob\n/) printf "%s", document; document = ""; next }
        { document = document $0 "\n" }
        END { if (document ~ /\nkind: RayJob\n/) printf "%s", document }' >"$overlay/rayjob.yaml.new"
    test -s "$overlay/rayjob.yaml.new"
    mv "$overlay/rayjob.yaml.new" "$overlay/rayjob.yaml"
done
