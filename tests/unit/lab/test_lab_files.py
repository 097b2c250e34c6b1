"""The files of a node's /etc."""

from lab.files import etc_files, hosts
from lab.layout import LabLayout
from lab.libvirt_conf import Host, host_uuid, render_libvirtd, render_qemu

MACHINE_ID = "0123456789abcdef0123456789abcdef"
HOST = Host(address="10.77.0.2", host_uuid=host_uuid(MACHINE_ID))


def settings(text: str) -> dict[str, str]:
    return dict(line.split(" = ", 1) for line in text.splitlines())


def test_libvirtd_opens_no_door_but_its_socket() -> None:
    found = settings(render_libvirtd(HOST))
    assert found["listen_tcp"] == found["listen_tls"] == "0"
    assert found["unix_sock_rw_perms"] == '"0700"'
    assert "listen_addr" not in found


def test_two_nodes_have_different_host_uuids() -> None:
    assert settings(render_libvirtd(HOST))["host_uuid"] == '"01234567-89ab-cdef-0123-456789abcdef"'


def test_qemu_keeps_to_the_documented_ports_and_the_cluster_network() -> None:
    found = settings(render_qemu(HOST))
    assert (found["migration_port_min"], found["migration_port_max"]) == ("60000", "60050")
    assert (found["remote_display_port_min"], found["remote_display_port_max"]) == ("5900", "5999")
    assert found["migration_address"] == found["vnc_listen"] == '"10.77.0.2"'


def test_qemu_verifies_whoever_connects_to_it_with_the_nodes_certificates() -> None:
    found = settings(render_qemu(HOST))
    assert found["default_tls_x509_verify"] == found["migrate_tls_x509_verify"] == "1"
    directories = {value for key, value in found.items() if key.endswith("_x509_cert_dir")}
    assert directories == {'"/var/lib/kvorum/pki/qemu"'}


def test_lists_are_written_as_libvirt_reads_them() -> None:
    found = settings(render_qemu(HOST))
    assert found["namespaces"] == found["cgroup_controllers"] == "[ ]"


def test_every_node_knows_every_other_by_name_before_it_exists() -> None:
    lines = hosts().splitlines()
    assert "10.77.0.1 n1" in lines and "10.77.0.32 n32" in lines


def test_a_node_has_a_name_and_an_identity_of_its_own() -> None:
    files = etc_files(LabLayout("x").node(2), machine_id=MACHINE_ID)
    assert files["hostname"] == "n2\n"
    assert files["machine-id"] == MACHINE_ID + "\n"
    assert "root:100000:65536" in files["subuid"]
