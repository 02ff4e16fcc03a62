# Images and containers below $work. Sourced by run.sh.
base_image=localhost/counterpoise-base:latest
runtime_image=localhost/counterpoise:0.1.0-cpu
submitter_image=localhost/counterpoise:0.1.0-submitter
containers=

mount --bind "$work" "$work" # the engine wants a mount point
mkdir "$work/storage" "$work/run" "$work/tmp"

say() {
    echo "--- $* ($(date +%H:%M:%S))" >&2
}

expect() { # FILE TEXT
    if ! grep -q -- "$2" "$1"; then
        echo "FAILED: no '$2' in:" >&2
        tail -n 40 "$1" >&2
        exit 1
    fi
}

in_storage() { # TOOL ARGUMENTS
    tool=$1
    shift
    TMPDIR=$work/tmp "$tool" --root "$work/storage" --runroot "$work/run" --storage-driver overlay "$@"
}

podman_here() {
    in_storage podman --runtime runc --cgroup-manager cgroupfs "$@"
}

make_base() {
    container=$(in_storage buildah from scratch)
    root=$(in_storage buildah mount "$container")
    debootstrap --variant=minbase --include=ca-certificates bookworm "$root" >"$work/build.log" 2>&1 &&
        in_storage buildah run --isolation chroot "$container" -- sh -c \
            'apt-get update && apt-get install -y --no-install-recommends python3.11 python3.11-venv' \
            >>"$work/build.log" 2>&1 || { tail -n 20 "$work/build.log" >&2; exit 1; }
    in_storage buildah commit --quiet --rm "$container" "$base_image" >/dev/null
}

# This machine's own package index and certificates, as pip knows them: its settings as one file, and every file or
# folder that they name.
index_options() {
    python3 -m pip config list | sed -n "s/^\(global\|user\|:env:\)[.]\([a-z-]*\)='\(.*\)'$/\2 = \3/p" |
        grep -v '^cert ' | awk -F ' = ' '!seen[$1]++ { line[++n] = $0 } END { print "[global]"; for (i = 1; i <= n; i++) print line[i] }' \
        >"$work/pip.conf"
    echo "-v $work/pip.conf:/etc/pip.conf:ro"
    grep -oE '(file://)?/[^ ]+' "$work/pip.conf" | sed 's,^file://,,; s,/simple$,,' | sort -u | while read -r place; do
        if [ -e "$place" ]; then echo "-v $place:$place:ro"; fi
    done
    if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
        echo "-v /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro"
    fi
}

build() { # TARGET IMAGE
    # shellcheck disable=SC2046 # the options are words
    in_storage buildah bud --isolation chroot --pull-never $(index_options) --file "$project/k8s/Dockerfile" \
        --build-arg "BASE=$base_image" --build-arg DEVICE=cpu --target "$1" --tag "$2" "$project" \
        >"$work/build.log" 2>&1 || { tail -n 40 "$work/build.log" >&2; exit 1; }
}

# A container as the manifests describe one: the image's own user, a read-only root, /tmp and /spill as volumes.
as_pod() { # NAME OPTIONS IMAGE COMMAND
    name=$1
    shift
    mkdir -p "$work/volumes/$name/tmp" "$work/volumes/$name/spill" "$work/shared"
    chown 10001:10001 "$work/volumes/$name/tmp" "$work/volumes/$name/spill" "$work/shared"
    podman_here run --name "$name" --read-only --read-only-tmpfs=false --cap-drop all --security-opt no-new-privileges \
        --network host --shm-size 1g --ulimit nofile=4096:4096 --ulimit nproc=4096:4096 \
        -v "$work/volumes/$name/tmp:/tmp" -v "$work/volumes/$name/spill:/spill" -v "$work/shared:/data" "$@"
}

run_alone() { # NAME COMMAND
    name=$1
    shift
    as_pod "$name" --rm "$runtime_image" sh -c 'test "$(id -u)" = 10001 && ! touch /app/written 2>/dev/null && exec "$@"' \
        sh "$@" 2>"$work/$name.log" || { tail -n 40 "$work/$name.log" >&2; exit 1; }
}

finish() {
    code=$?
    for name in $containers; do
        podman_here rm --force --time 5 "$name" >/dev/null 2>&1 || true
    done
    in_storage buildah umount --all >/dev/null 2>&1 || true
    umount -R "$work" 2>/dev/null || true
    if [ "$code" != 0 ] && [ -n "${KEEP:-}" ]; then
        echo "kept: $work" >&2
    else
        rm -rf --one-file-system "$work"
    fi
    exit "$code"
}
