#!/usr/bin/env bash
# Starts or stops the cluster of docker-compose.yml: docker/cluster.sh up|down|actors. `up` waits until all workers have
# joined; `actors` prints the settings of a run that uses all of them.
set -euo pipefail
cd "$(dirname "$0")"
compose=(docker compose)
docker compose version >/dev/null 2>&1 || compose=(docker-compose)

# Files of runs belong to the user who starts the cluster. No container runs as root: root's files belong to user 1000.
CLUSTER_UID=${CLUSTER_UID:-$(id -u)} CLUSTER_GID=${CLUSTER_GID:-$(id -g)}
[ "$CLUSTER_UID" != 0 ] || CLUSTER_UID=1000 CLUSTER_GID=1000
export CLUSTER_UID CLUSTER_GID

set_of() { # the value of a setting in the environment, else in .env
    echo "${!1:-$(sed -n "s/^$1=//p" .env)}"
}

actors_of() { # the number of actors of a role, ROLLOUT or LEARNER: on GPUs one for each id
    if [ "$(set_of COMPOSE_PROFILES)" = gpu ]; then
        set_of "$1_GPUS" | tr , '\n' | grep -c .
    else
        set_of "$1S"
    fi
}

up() {
    local runs token=secrets/ray_token expected deadline joined=0
    runs=$(set_of RUNS)
    mkdir -p secrets "$runs"
    [ -s $token ] || (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >$token)
    chown "$CLUSTER_UID:$CLUSTER_GID" $token "$runs"
    ROLLOUTS=$(actors_of ROLLOUT) LEARNERS=$(actors_of LEARNER)
    export ROLLOUTS LEARNERS
    expected=3 # on GPUs: the head and one worker for each role
    [ "$(set_of COMPOSE_PROFILES)" = gpu ] || expected=$((1 + ROLLOUTS + LEARNERS))

    "${compose[@]}" build head
    "${compose[@]}" up -d
    echo "waiting for $expected nodes"
    deadline=$((SECONDS + 300))
    while [ "$joined" -lt "$expected" ]; do
        if [ $SECONDS -gt $deadline ]; then
            echo "error: $joined of $expected nodes joined in 300 s; see ${compose[*]} -f docker/docker-compose.yml logs" >&2
            exit 1
        fi
        sleep 2
        joined=$("${compose[@]}" exec -T head ray list nodes --filter state=ALIVE --format json 2>/dev/null |
            grep -o '"node_id"' | wc -l || true)
    done
    "${compose[@]}" exec -T head ray status
    echo "dashboard: http://127.0.0.1:8265   tensorboard: http://127.0.0.1:6006   runs: http://127.0.0.1:7860"
    echo "token, and password of the page of runs: docker/$token"
}

case ${1:-} in
up) up ;;
down) "${compose[@]}" down --volumes --remove-orphans ;;
actors) echo "rollout.actors=$(actors_of ROLLOUT) learner.ranks=$(actors_of LEARNER)" ;;
*) echo "usage: $0 up|down|actors" >&2 && exit 2 ;;
esac
