#!/bin/bash
# Installs Kvorum from the checkout in /kvorum and starts its four services.
#   install.sh ADDRESS      the node's address on the cluster network
set -euo pipefail
apt-get update -qq
apt-get install -y -qq --no-install-recommends make libvirt-daemon-system
cd /kvorum
make dev
ln -sf /kvorum/.venv/bin/kvorum /usr/local/bin/kvorum

for unit in clusterfs agent ha keeper; do
    cat >"/etc/systemd/system/kvorum-$unit.service" <<UNIT
[Unit]
Description=Kvorum $unit
After=network-online.target libvirtd.service
Wants=network-online.target

[Service]
ExecStart=/kvorum/.venv/bin/kvorum-$unit
Restart=always
RestartSec=1
# A restart of a service never touches a guest.
KillMode=process

[Install]
WantedBy=multi-user.target
UNIT
done
# QEMU's certificates appear there when the node gets its own; libvirtd wants the directory from the start.
mkdir -p /var/lib/kvorum/pki/qemu
/kvorum/.venv/bin/python - "$1" <<'PYTHON'
import sys
from pathlib import Path

from lab.libvirt_conf import Host, host_uuid, render_libvirtd, render_qemu

host = Host(address=sys.argv[1], host_uuid=host_uuid(Path("/etc/machine-id").read_text().strip()))
Path("/etc/libvirt/libvirtd.conf").write_text(render_libvirtd(host))
Path("/etc/libvirt/qemu.conf").write_text(render_qemu(host))
PYTHON
systemctl daemon-reload
systemctl restart libvirtd.service
systemctl enable --now kvorum-clusterfs kvorum-agent kvorum-ha kvorum-keeper
