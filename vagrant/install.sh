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
/kvorum/.venv/bin/python -m lab.libvirt_conf --address "$1" --directory /etc/libvirt
systemctl daemon-reload
systemctl enable --now libvirtd.service kvorum-clusterfs kvorum-agent kvorum-ha kvorum-keeper
