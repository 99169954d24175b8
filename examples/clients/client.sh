#!/bin/sh
# client.sh put TOPIC < BODY: a record onto flash. client.sh listen FILTER: commands from upstream, as they come.
# Needs socat; `backhaul send` and `backhaul listen` do the same without it.
set -eu
socket=${BACKHAUL_SOCKET:-/run/backhaul/backhaul.sock}
case $1 in
put)
    # Base64, so that nothing needs escaping; the topic is taken as it is: letters, digits and slashes.
    printf '{"put":{"topic":"%s","wait":"committed","base64":"%s"}}\n' "$2" "$(base64 | tr -d '\n')" |
        socat -t 10 - "UNIX-CONNECT:$socket"
    ;;
listen)
    # What is read is answered through a second pipe: done, or the command comes again.
    pipe=$(mktemp -u)
    mkfifo "$pipe"
    trap 'rm -f "$pipe"' EXIT
    socat - "UNIX-CONNECT:$socket" < "$pipe" | {
        exec 3> "$pipe"
        printf '{"subscribe":{"topic":"%s"}}\n' "$2" >&3
        while read -r command; do
            printf '%s\n' "$command"
            seq=$(printf '%s' "$command" | sed -n 's/.*"command":{"seq":\([0-9]*\).*/\1/p')
            [ -z "$seq" ] || printf '{"done":{"seq":%s}}\n' "$seq" >&3
        done
    }
    ;;
esac
