#!/bin/sh
# PID 1 of the container template: prints a counter that lives in this shell's memory, and leaves at once when asked.
# Any of the signals that LXC or a person may send to halt it will do.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
trap 'echo OFF; kill -TERM -1 2>/dev/null; exit 0' PWR USR1 USR2 TERM INT
exec </dev/null >/dev/console 2>&1
[ -e /proc/self ] || mount -t proc proc /proc
ip link set lo up 2>/dev/null
mkdir -p /run/www
httpd -p 80 -h /run/www
echo "READY container $(hostname)"
# The kernel's boot_id is the node's; a container's start has one of its own.
boot=$(cat /proc/sys/kernel/random/uuid)
count=0
while :; do
    count=$((count + 1))
    line="BOOT $boot COUNT $count"
    echo "$line"
    echo "$line" >/run/www/count.new && mv /run/www/count.new /run/www/count
    sleep 1 &
    wait $!
done
