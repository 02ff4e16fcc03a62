#!/bin/sh
# Builds the CPU images over a stand-in base (Debian by debootstrap, so no registry is asked) and runs them as a cluster
# would: not as root, on a read-only root file system. `make image-test` calls it. Needs root, minutes, and gigabytes
# below TMPDIR (default: /var/tmp), which must not be an overlay itself.
set -eu
for tool in buildah podman runc debootstrap unshare; do
    if ! command -v "$tool" >/dev/null; then
        echo "skipped: $tool is not installed" >&2
        exit 0
    fi
done
if [ "$(id -u)" != 0 ]; then
    echo "skipped: images are built by root here" >&2
    exit 0
fi
if [ "${1:-}" != inside ]; then # mounts of its own, gone with it
    exec unshare --mount --propagation private sh "$0" inside
fi

project=$(cd "$(dirname "$0")/../.." && pwd)
here=$project/k8s/image-test
work=$(mktemp -d "${TMPDIR:-/var/tmp}/counterpoise-image.XXXXXX")
. "$here/engine.sh"
trap 'finish' EXIT
trap 'exit 1' INT TERM
began=$(date +%s)

say "a stand-in base"
make_base
say "the images"
build runtime "$runtime_image"
build submitter "$submitter_image"
say "the demo, in one container"
run_alone demo python -m jobs.demo --folder /tmp/demo >"$work/demo.json"
expect "$work/demo.json" '"exit_code": 0'
say "a head, a training worker and a data worker, as three containers"
. "$here/cluster.sh"
start_cluster
submit -- python -m jobs.make_logs --world jobs/configs/demo_world.yaml --days 2026-11-01..2026-11-02 --logs /data/logs
submit -- python -m jobs.fit_features --config "$config" $places --days 2026-11-01
say "a day, by the entrypoint of the manifest"
submit -- $entrypoint $places --day 2026-11-01
expect "$work/submitted" '"result": "published"'
say "another day, whose pods end in the middle"
end_pods_in_the_middle
expect "$work/ended" 'lose their node in'
expect "$work/ended" 'stopped by SIGTERM at step'
say "all of it took $(($(date +%s) - began)) s"
