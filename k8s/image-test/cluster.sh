# Three containers that make one Ray cluster over the loopback. Sourced by run.sh.
config=/etc/counterpoise/config.yaml
# shellcheck disable=SC2034 # run.sh uses it
entrypoint="python -m jobs.daily --config $config --max-catch-up 0"
places="--set root=/data/root --set logs.path=/data/logs --set ingest.batch_size=64"
port=26379
dashboard=28265
token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
chmod a+r "$project/k8s/overlays/dev/rayjob/config.yaml"

start_node() { # NAME OPTIONS_OF_RAY
    name=$1
    shift
    containers="$containers $name"
    as_pod "$name" --detach -e RAY_AUTH_MODE=token -e "RAY_AUTH_TOKEN=$token" -e "RAY_ADDRESS=127.0.0.1:$port" \
        -v "$project/k8s/overlays/dev/rayjob/config.yaml:$config:ro" "$runtime_image" \
        ray start --block --object-store-memory 300000000 --object-spilling-directory /spill "$@" >/dev/null
}

submit() { # COMMAND
    as_pod submitter --rm -e RAY_AUTH_MODE=token -e "RAY_AUTH_TOKEN=$token" "$submitter_image" \
        ray job submit --address "http://127.0.0.1:$dashboard" -- "$@" >"$work/submitted" 2>&1 ||
        { tail -n 40 "$work/submitted" >&2; exit 1; }
}

start_cluster() {
    start_node head --head --node-ip-address 127.0.0.1 --port "$port" --num-cpus 0 --dashboard-host 127.0.0.1 \
        --dashboard-port "$dashboard"
    for _ in $(seq 60); do
        podman_here exec head ray health-check --address "127.0.0.1:$port" >/dev/null 2>&1 && break
        sleep 1
    done
    start_node training --address "127.0.0.1:$port" --node-ip-address 127.0.0.2 --num-cpus 2 \
        --labels counterpoise-group=training
    start_node data --address "127.0.0.1:$port" --node-ip-address 127.0.0.3 --num-cpus 2 \
        --labels counterpoise-group=data
    sleep 10
}

end_pods_in_the_middle() {
    echo "later" >"$work/ended"
}
