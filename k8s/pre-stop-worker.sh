#!/bin/sh
# Hook that runs before a worker's pod ends.
# usage: pre-stop-worker.sh AT_LEAST AT_MOST   (seconds)
# It tells Ray that the node goes away: the run saves a checkpoint at once, and no task begins here. Then it waits until
# no training worker is left, so that the save ends before the pod does.
set -u
at_least=$1
at_most=$2

trains_here() {
    for file in /proc/[0-9]*/cmdline; do
        case "$(tr '\0' ' ' 2>/dev/null <"$file")" in
        ray::*TrainWorker*) return 0 ;;
        esac
    done
    return 1
}

began=$(date +%s)
timeout 30 ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the pod ends" \
    --deadline-remaining-seconds "$at_most" || echo "Ray was not told that this node goes away" >&2
while :; do
    waited=$(($(date +%s) - began))
    [ "$waited" -ge "$at_most" ] && break
    [ "$waited" -ge "$at_least" ] && ! trains_here && break
    sleep 1
done
exit 0
