#!/bin/sh
# Asks $GATEWAY once a second, and breaks and heals $PRIMARY meanwhile. One line for each answer: its status, who answered, and
# how many were asked.
n=0
until curl -s -o /dev/null "$GATEWAY/v1/models"; do sleep 1; done
while [ "$n" -lt 25 ]; do
    n=$((n + 1))
    case $n in
    6) echo "primary breaks: $(curl -s -X POST "$PRIMARY/simulate/500")" ;;
    16) echo "primary heals: $(curl -s -X POST "$PRIMARY/simulate/heal")" ;;
    esac
    curl -s -o /dev/null -w "$n: %{http_code} by %header{x-fusebox-provider}, asked %header{x-fusebox-attempts}\n" \
        "$GATEWAY/v1/chat/completions" -d "{\"model\": \"demo\", \"messages\": [], \"user\": \"$n\"}"
    sleep 1
done
