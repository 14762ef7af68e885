#!/usr/bin/env bash
# Build the image, start the cluster of compose.yml, try the guide's commands on it, and remove everything again.
#
# It needs docker with the compose plugin, and one of these:
#   - a running engine, which has the base image or can pull it (CHAT_BASE, python:3.11-slim if that is not set);
#   - or root, dockerd, iptables, debootstrap, python3 with pip, and access to Debian's and Python's packages. It then
#     starts an engine of its own in namespaces of its own, and makes the base image with debootstrap. All of that
#     is in one temporary directory (some 3 GB below TMPDIR, else /var/tmp) and ends with the script.
# It installs nothing.
#
# Exit codes: 0 everything is as it should be; 1 something is not; 77 skipped, the last line says why; 130 interrupted.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here suite=bookworm                # Debian's release with Python 3.11
readonly secret=verify-secret-0123456789 token=verify-token-0123456789

say() { printf '%s %s\n' "$(date +%T)" "$*"; }
fail() { say "FAILED: $*" >&2; exit 1; }
skip() { say "skipped: $*" >&2; exit 77; }
has() { command -v "$1" >/dev/null; }

# Run a command every half second until it succeeds: within SECONDS WHAT COMMAND...
within() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" 2>/dev/null; do
        ((SECONDS < deadline)) || fail "not so in time: $what"
        sleep 0.5
    done
}

# ---- the guide's commands --------------------------------------------------------------------------------------

# The number in a node's STATUS: status NODE KEY
status() { docker exec "chat_node$1" python deploy/healthy.py "500$1" | sed -E "s/.*\"$2\":([0-9]+).*/\1/"; }
healthy() {
    local node
    for node in "$@"; do
        [ "$(docker inspect --format '{{.State.Health.Status}}' "chat_node$node")" = healthy ] || return 1
    done
}
all_have() { [ "$(status 1 delivered_seq) $(status 2 delivered_seq) $(status 3 delivered_seq)" = "$1 $1 $1" ]; }
logged() { docker logs "chat_node$1" 2>&1 | grep -F -e "$2" >/dev/null; } # -q would end before `docker logs` does
another_leads() { [[ "$(status 1 leader)" == [12] && "$(status 1 leader)" == "$(status 2 leader)" ]]; }
shown() { grep -c '^\[seq=' "$work/chat.out" || true; }
shows() { (($(shown) >= $1)); }
chat() { docker compose run --rm -T chat "$@"; }
on_volume() { # NODE PROGRAM ARGUMENT...: run a program in a container with this node's volume
    local volume="deploy_node$1_data" program=$2
    shift 2
    docker run --rm --volume "$volume:/data" --entrypoint "$program" chatlab "$@"
}

up() { # In the background, as in a terminal of its own.
    say "$ docker compose up --build${1:+    # with $1}"
    docker compose up --build >>"$work/up.log" 2>&1 &
    upping=$!
    within 600 "three healthy nodes" healthy 1 2 3
    say "three nodes are healthy, node $(status 1 leader) leads"
}

down() {
    say "$ docker compose down"
    docker compose down >>"$work/up.log" 2>&1
    wait $upping || true
    ! grep 'exited with code [^0]' "$work/up.log" || fail "a node did not stop cleanly"
}

messages() { # One every 20 ms until there is the file `enough`.
    local n=0
    until [ -e "$work/enough" ]; do
        echo "message $((++n))"
        sleep 0.02
    done
}

try() {
    local node last chatting leader
    cd "$here"
    up
    [ "$(status 1 leader)" = 3 ] || fail "node 3 does not lead"
    [ "$(docker exec chat_node1 id -u)" != 0 ] || fail "the node runs as root"
    ! docker exec chat_node1 touch /chatlab/file 2>/dev/null || fail "the root file system can be written"

    say "$ docker compose run --rm chat    # three messages from a pipe"
    printf '%s\n' "Hello from node 1!" "This is message 2" "And message 3" | chat 2>/dev/null
    for node in 1 2 3; do
        within 30 "[seq=3] on node $node" logged "$node" "[seq=3] node_9999: And message 3"
        logged "$node" "[seq=1] node_9999: Hello from node 1!" || fail "node $node does not show [seq=1]"
    done
    say "all three nodes show [seq=1] to [seq=3]"

    say "$ docker stop chat_node3    # while a client of node 3 chats, a message every 20 ms"
    messages | chat --port 5003 --port 5001 --port 5002 --client-id 101 >"$work/chat.out" 2>"$work/chat.err" &
    chatting=$!
    within 120 "100 messages shown" shows 100
    docker stop chat_node3 >/dev/null
    [ "$(docker inspect --format '{{.State.ExitCode}}' chat_node3)" = 0 ] || fail "node 3 did not stop cleanly"
    within 60 "another leader" another_leads
    leader=$(status 1 leader)
    within 120 "200 more messages shown" shows $(($(shown) + 200))
    touch "$work/enough"
    wait $chatting || fail "the client was not acknowledged everything: $(cat "$work/chat.err")"
    sed -n 's/^--/         client: --/p' "$work/chat.err"
    last=$(status 1 delivered_seq)
    say "node $leader leads; the client sent $((last - 3)) messages, all acknowledged"

    say "$ docker start chat_node3"
    docker start chat_node3 >/dev/null
    within 120 "node 3 healthy" healthy 3
    within 60 "the same messages on all nodes" all_have "$last"
    logged 3 "New coordinator: node_$leader" || fail "node 3 did not join as a follower"
    say "node 3 follows node $(status 3 leader) and has caught up: $last messages on all nodes"

    say "$ docker compose run --rm --entrypoint python chat -m examples.load_test --host nodes"
    docker compose run --rm -T --entrypoint python chat -m examples.load_test --host nodes 2>/dev/null
    last=$((last + 100))
    within 60 "the same messages on all nodes" all_have "$last"

    down
    say "$ docker run --volume deploy_node1_data:/data … ls -l /data/logs"
    on_volume 1 ls -l /data/logs
    for node in 1 2 3; do
        on_volume "$node" bash -c "python -m nodeproc verify /data >&2 && cat /data/logs/*" >"$work/log$node"
    done
    for node in 2 3; do cmp "$work/log1" "$work/log$node" || fail "the volumes' logs differ"; done
    [ "$(wc -l <"$work/log1")" = "$last" ] || fail "the logs do not have $last lines"
    sed -nE 's/.*"sender_id":101,.*"payload":"(.*)"}/\1/p' "$work/log1" >"$work/stored"
    seq -f 'message %.0f' $((last - 103)) | cmp - "$work/stored" || fail "messages of the client are missing or twice"
    say "the logs of the three volumes are equal: $last messages, each of the client's once and in order"

    export CHAT_SECRET=$secret CHAT_CLIENT_TOKEN=$token
    up "CHAT_SECRET and CHAT_CLIENT_TOKEN set"
    for node in 1 2 3; do
        logged "$node" "Loaded $last messages from log" || fail "node $node did not load its log"
    done
    if echo "no token" | CHAT_CLIENT_TOKEN="" chat >/dev/null 2>"$work/chat.err"; then fail "no token was required"; fi
    grep -q "client token" "$work/chat.err" || fail "refused for another reason: $(cat "$work/chat.err")"
    echo "Here again" | chat 2>/dev/null | tee "$work/chat.out"
    grep -qxF "[seq=$((last + 1))] node_9999: Here again" "$work/chat.out" || fail "the numbering does not go on"
    say "a client without the token is refused; with it, the next message has number $((last + 1))"
    down
    say "passed"
}

# ---- the engine ------------------------------------------------------------------------------------------------

# In a running engine: refuse to touch what is there already, and note what to remove in the end.
in_running_engine() {
    local name
    for name in chat_node1 chat_node2 chat_node3 deploy_node1_data deploy_node2_data deploy_node3_data chatlab; do
        ! docker inspect "$name" >/dev/null 2>&1 || skip "the engine has a container, volume or image $name"
    done
    added=(chatlab)
    if ! docker image inspect "$CHAT_BASE" >/dev/null 2>&1; then
        docker pull --quiet "$CHAT_BASE" >/dev/null || skip "the engine has no image $CHAT_BASE and cannot pull it"
        added+=("$CHAT_BASE")
    fi
    try
}

# Run a program with mounts and processes of its own: they end with it. Options of unshare may stand before it.
enclosed() {
    unshare --mount --pid --fork --kill-child --mount-proc "$@" &
    enclosure=$!
    wait $enclosure
}

# A root file system with Python, and pip set up to use the packages that are in it: the engine has no network.
make_base() {
    say "making a base image with debootstrap"
    enclosed debootstrap --variant=minbase --include=python3,python3-pip "$suite" "$work/base" >"$work/debootstrap.log" \
        2>&1 || skip "debootstrap cannot make a base image: $(tail -n 1 "$work/debootstrap.log")"
    python3 -m pip --quiet download --only-binary :all: --python-version 3.11 --dest "$work/base/packages" \
        --requirement "$here/../requirements.txt" 2>"$work/pip.log" || skip "pip: $(tail -n 1 "$work/pip.log")"
    printf '[install]\nno-index = true\nfind-links = /packages\nbreak-system-packages = true\n' >"$work/base/etc/pip.conf"
    ln -s python3 "$work/base/usr/bin/python"
}

# Start an engine here, in its enclosure, and try the commands on it.
in_enclosure() {
    local dockerd
    export DOCKER_HOST=unix://$work/socket CHAT_BASE=chatlab-base BUILDX_CONFIG=$work/buildx
    ip link set lo up
    mount -t tmpfs none /run
    [ ! -d /etc/docker ] || mount -t tmpfs none /etc/docker
    dockerd --host "$DOCKER_HOST" --data-root "$work/data" --exec-root "$work/exec" \
        --pidfile "$work/pid" --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$(basename "$work")" \
        >"$work/dockerd.log" 2>&1 &
    dockerd=$!
    until docker version >/dev/null 2>&1; do
        if ! kill -0 $dockerd 2>/dev/null || ((SECONDS > 120)); then skip "dockerd: $(tail -n 1 "$work/dockerd.log")"; fi
        sleep 0.5
    done
    say "docker $(docker info --format '{{.ServerVersion}} on {{.Driver}}'), compose $(docker compose version --short)"
    tar --create --directory "$work/base" --exclude './var/cache/apt/*' --exclude './var/lib/apt/*' . |
        docker import - "$CHAT_BASE" >/dev/null
    try
}

# ---- the beginning and the end ---------------------------------------------------------------------------------

cleanup() {
    local code=$?
    set +e
    trap '' INT TERM
    touch "$work/enough"
    if [ -n "$enclosure" ]; then # unshare: its only child is process 1 of the enclosure, and all others end with that.
        pkill -KILL --parent "$enclosure"
        wait "$enclosure"
    elif ((${#added[@]})); then
        (cd "$here" && docker compose down --volumes --remove-orphans)
        docker image rm "${added[@]}"
    fi >/dev/null 2>&1
    if ((code == 1)) && [ -s "$work/up.log" ]; then tail -n 60 "$work/up.log" >&2; fi
    rm -rf --one-file-system "$work"
    find /sys/fs/cgroup -depth -type d -path "*/$(basename "$work")*" -exec rmdir {} \; 2>/dev/null
    exit $code
}

has docker || skip "there is no docker"
docker compose version >/dev/null 2>&1 || skip "there is no docker compose"
trap 'exit 130' INT TERM
if [ "${1:-}" = --in-enclosure ]; then # started by the last line
    readonly work=$2
    in_enclosure
    exit
fi

export CHAT_BASE=${CHAT_BASE:-python:3.11-slim} CHAT_SECRET="" CHAT_CLIENT_TOKEN=""
enclosure="" added=()
work=$(mktemp --directory "${TMPDIR:-/var/tmp}/chatlab_verify.XXXXXX")
readonly work
trap cleanup EXIT
if docker version >/dev/null 2>&1; then
    in_running_engine
    exit
fi
[ "$(id -u)" = 0 ] || skip "no engine runs, and only root can start one"
for program in dockerd iptables debootstrap python3 unshare pkill; do
    has $program || skip "no engine runs, and there is no $program to start one"
done
make_base
enclosed --net bash "$0" --in-enclosure "$work"
