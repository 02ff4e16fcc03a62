#!/bin/sh
# Hook that runs before the head's pod ends: asks the command to save and end (SIGTERM), and waits for it.
# usage: pre-stop-driver.sh MODULE_PREFIX SECONDS
# The command is `python -m MODULE_PREFIX...`. Ray's own processes live until this script has ended.
set -u

is_command() { # PROCESS
    tr '\0' '\n' 2>/dev/null <"/proc/$1/cmdline" | {
        read -r program && read -r option && read -r module || exit 1
        case "${program##*/} $option $module" in
        python*\ "-m $prefix"*) test "$option" = -m ;;
        *) false ;;
        esac
    }
}

prefix=$1
left=$2
asked=
for folder in /proc/[0-9]*; do
    process=${folder#/proc/}
    if is_command "$process"; then
        kill -TERM "$process" && asked="$asked $process"
    fi
done
for process in $asked; do
    while [ "$left" -gt 0 ] && is_command "$process"; do
        sleep 1
        left=$((left - 1))
    done
done
exit 0
