#!/bin/busybox sh
# PID 1 of the Linux test guest. Settings come from the kernel's command line:
#   kv.name=NAME kv.ip=ADDRESS/LENGTH kv.gw=ADDRESS   network, static
#   kv.stamp=/dev/sda    write the counter's line to block 1 of that disk each second
#   kv.dirty=MiB         rewrite that much memory all the time
/bin/busybox mkdir -p /proc /sys /dev /run /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs run /run
export PATH=/bin
console=/dev/ttyS0
for module in $(cat /modules.order); do insmod "/lib/$module.ko" 2>/dev/null; done

setting() {
    for word in $(cat /proc/cmdline); do
        case $word in "kv.$1="*) echo "${word#*=}" ;; esac
    done
}

name=$(setting name)
hostname "${name:-linux}"
ip link set lo up
address=$(setting ip)
if [ -e /sys/class/net/eth0 ] && [ -n "$address" ]; then
    ip addr add "$address" dev eth0
    ip link set eth0 up
    gateway=$(setting gw)
    [ -n "$gateway" ] && ip route add default via "$gateway"
fi
mkdir -p /run/www
httpd -p 80 -h /run/www

for event in /dev/input/event*; do
    [ -e "$event" ] && (
        dd if="$event" bs=24 count=1 >/dev/null 2>&1
        echo OFF >$console
        sync
        poweroff -f
    ) &
done

mebibytes=$(setting dirty)
[ -n "$mebibytes" ] && (
    mkdir /run/dirty
    mount -t tmpfs -o "size=$((mebibytes + 8))m" dirty /run/dirty
    while :; do
        i=0
        while [ $i -lt "$mebibytes" ]; do
            dd if=/dev/urandom of=/run/dirty/memory bs=1M count=1 seek=$i conv=notrunc 2>/dev/null
            i=$((i + 1))
        done
    done
) &

echo "READY linux ${name:-linux} $address" >$console
boot=$(cat /proc/sys/kernel/random/boot_id)
disk=$(setting stamp)
count=0
# The counter lives in this shell's memory and nowhere else.
while :; do
    count=$((count + 1))
    line="BOOT $boot COUNT $count"
    echo "$line" >$console
    echo "$line" >/run/www/count.new && mv /run/www/count.new /run/www/count
    [ -b "$disk" ] && echo "$line" | dd of="$disk" bs=512 seek=1 conv=sync,fsync,notrunc 2>/dev/null
    sleep 1
done
