#!/bin/bash
# lxc_node.sh NAME DIRECTORY - pid 1 of a throw-away host for containers, in namespaces and cgroups of its own.
# It has a bridge vmbr0 (10.77.1.1/24) and a sysfs of its own network namespace, without which liblxc finds no bridge.
set -eu
name=$1 directory=$2 root=/sys/fs/cgroup
if [ "${3:-}" != inside ]; then
    for hierarchy in "$root"/*/; do
        own=$hierarchy/$name
        mkdir -p "$own"
        if [ -e "$own/cpuset.cpus" ]; then
            cat "$hierarchy/cpuset.cpus" >"$own/cpuset.cpus"
            cat "$hierarchy/cpuset.mems" >"$own/cpuset.mems"
            echo 1 >"$own/cgroup.clone_children"
        fi
        echo $$ >"$own/cgroup.procs"
    done
    exec unshare --pid --mount --net --uts --ipc --cgroup --fork --kill-child bash "$0" "$name" "$directory" inside
fi
mount --make-rprivate /
mount -t proc proc /proc
hierarchies=$(ls "$root")
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 cgroup "$root"
for hierarchy in $hierarchies; do
    mkdir "$root/$hierarchy"
    case $hierarchy in
    unified) mount -t cgroup2 cgroup "$root/$hierarchy" ;;
    systemd) mount -t cgroup -o none,name=systemd cgroup "$root/$hierarchy" ;;
    *) mount -t cgroup -o "$hierarchy" cgroup "$root/$hierarchy" ;;
    esac
done
mount -t tmpfs -o mode=755 tmpfs /run
ip link set lo up
ip link add vmbr0 type bridge forward_delay 0
ip addr add 10.77.1.1/24 dev vmbr0
ip link set vmbr0 up
touch "$directory/ready"
# bash as pid 1 reaps whatever loses its parent, as a host's init does.
while :; do sleep 3600 & wait $! || true; done
