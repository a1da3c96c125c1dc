#!/usr/bin/env bash
# Runs the ranks of a command on simulated machines: network namespaces, each with an address of its
# own, joined by a switch.
# Usage: dev/machines.sh [-6] [-c FILE] MACHINES PROCESSES COMMAND...
# PROCESSES is the number per machine. Ranks find each other by torchrun's variables (RANK, WORLD_SIZE,
# MASTER_ADDR, ...).
#   -6       connect over IPv6
#   -c FILE  disconnect the last machine silently as soon as FILE exists
# Needs root, unshare and ip. The namespaces belong to processes that end with this one, so nothing is
# left behind.
set -euo pipefail

fail() { echo "machines: $*" >&2; exit 2; }

if [ "${1-}" != --inside ]; then
    [ "$(uname)" = Linux ] || fail "needs Linux: the machines are its namespaces"
    [ "$(id -u)" = 0 ] || fail "needs root to create network namespaces: run it with sudo"
    command -v ip >/dev/null || fail "needs ip: apt install iproute2"
    command -v unshare >/dev/null || fail "needs unshare: apt install util-linux"
    apart=(unshare --net --mount --pid --fork --kill-child --mount-proc)
    "${apart[@]}" ip link add type veth 2>/dev/null || fail "this system does not allow network namespaces joined by veth, not even to root"
    # unshare ignores signals, so they are passed on here. setpriv makes it end with this shell even if
    # that is killed.
    setpriv --pdeathsig KILL "${apart[@]}" "$0" --inside "$@" &
    trap 'kill -KILL $!; wait 2>/dev/null; exit 143' TERM INT HUP
    wait $!
    exit
fi
shift

cut= version=4
while getopts 6c: flag; do
    case $flag in
    6) version=6 ;;
    c) cut=$OPTARG ;;
    *) fail "usage: dev/machines.sh [-6] [-c FILE] MACHINES PROCESSES COMMAND..." ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 3 ] && [ "$1" -ge 1 ] 2>/dev/null && [ "$1" -le 200 ] && [ "$2" -ge 1 ] 2>/dev/null ||
    fail "expected MACHINES (up to 200) and PROCESSES, and a command to run"
machines=$1 processes=$2
shift 2

# Names of namespaces are files. This mount is private, so other processes do not see them.
mkdir -p /run/netns
mount -t tmpfs none /run/netns
ip link add switch type bridge
ip link set switch up
for ((m = 0; m < machines; m++)); do
    ip netns add "m$m"
    ip link add "port$m" type veth peer name eth0 netns "m$m"
    ip link set "port$m" master switch up
    ip -n "m$m" addr add "10.77.0.$((m + 1))/24" dev eth0
    ip -n "m$m" addr add "fd77::$((m + 1))/64" dev eth0 nodad
    ip -n "m$m" link set lo up
    ip -n "m$m" link set eth0 up
done

export WORLD_SIZE=$((machines * processes)) LOCAL_WORLD_SIZE=$processes MASTER_PORT=29500 MASTER_ADDR=10.77.0.1
[ $version = 4 ] || MASTER_ADDR=fd77::1
ranks=()
for ((rank = 0; rank < WORLD_SIZE; rank++)); do
    RANK=$rank LOCAL_RANK=$((rank % processes)) ip netns exec "m$((rank / processes))" "$@" \
        > >(sed -u "s/^/[$rank] /") 2> >(sed -u "s/^/[$rank] /" >&2) &
    ranks+=($!)
done
if [ -n "$cut" ]; then
    (until [ -e "$cut" ]; do sleep 0.05; done; ip link set "port$((machines - 1))" down) &
fi
code=0
for rank in "${ranks[@]}"; do
    wait "$rank" || { ended=$?; [ $code != 0 ] || code=$ended; }
done
sleep 0.2 # for the last output
exit $code
