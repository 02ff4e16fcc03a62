# Three containers that make one Ray cluster over the loopback. Sourced by run.sh.
config=/etc/counterpoise/config.yaml
# shellcheck disable=SC2034 # run.sh uses it
entrypoint="python -m jobs.daily --config $config --max-catch-up 0"
# shellcheck disable=SC2034
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

# The environment of a run, from the manifest's runtimeEnvYAML.
variables=$(sed -n 's/^ *\(RAY_TRAIN_[A-Z_]*\): "\(.*\)"$/"\1": "\2"/p' "$project/k8s/overlays/dev/rayjob.yaml" | paste -s -d ,)

submit() { # OPTIONS_OF_RAY -- COMMAND
    as_pod submitter --rm -e RAY_AUTH_MODE=token -e "RAY_AUTH_TOKEN=$token" "$submitter_image" \
        ray job submit --address "http://127.0.0.1:$dashboard" --runtime-env-json "{\"env_vars\": {$variables}}" "$@" \
        >"$work/submitted" 2>&1 || { tail -n 40 "$work/submitted" >&2; exit 1; }
}

has_cpus() { # NUMBER
    podman_here exec head ray status 2>/dev/null | grep -q "/$1.0 CPU"
}

# A busy machine may start Ray's agent later than its raylet waits: then the container is started again.
start_worker() { # NAME ADDRESS CPUS_AFTERWARDS
    for _ in 1 2 3; do
        start_node "$1" --address "127.0.0.1:$port" --node-ip-address "$2" --num-cpus 2 \
            --dashboard-agent-listen-port "$((dashboard + $3))" --labels "counterpoise-group=$1"
        for _ in $(seq 150); do
            has_cpus "$3" && return 0
            sleep 1
        done
        podman_here rm --force --time 5 "$1" >/dev/null
    done
    echo "FAILED: the node $1 did not join" >&2
    exit 1
}

start_cluster() {
    start_node head --head --node-ip-address 127.0.0.1 --port "$port" --num-cpus 0 --dashboard-host 127.0.0.1 \
        --dashboard-port "$dashboard" --dashboard-agent-listen-port "$((dashboard + 1))"
    for _ in $(seq 60); do
        podman_here exec head ray health-check --address "127.0.0.1:$port" >/dev/null 2>&1 && break
        sleep 1
    done
    start_worker training 127.0.0.2 2
    start_worker data 127.0.0.3 4
}

# While a day is trained, the hooks run that Kubernetes would run: the worker's pod ends, then the head's.
end_pods_in_the_middle() {
    submit --submission-id ending --no-wait -- $entrypoint $places --set ingest.batch_size=8 --day 2026-11-02 # many steps
    for _ in $(seq 300); do
        log=$(find "$work/volumes/head/tmp/ray" -name job-driver-ending.log | head -n 1)
        [ -n "$log" ] && grep -q 'train 2026-11-02' "$log" && break
        sleep 1
    done
    podman_here exec training /bin/sh /app/k8s/pre-stop-worker.sh 0 60 &
    hook=$!
    for _ in $(seq 40); do
        grep -q 'lose their node' "$log" && break
        sleep 1
    done
    podman_here exec head /bin/sh /app/k8s/pre-stop-driver.sh jobs. 120
    wait "$hook"
    cp "$log" "$work/ended"
}
