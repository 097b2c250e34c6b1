"""The container stamps."""

import io
import tarfile

from ha_guests import stamping_template

from lab.images import container


def test_the_containers_first_process_stamps_what_it_prints() -> None:
    packed = stamping_template(container.build().read_bytes())
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        names = archive.getnames()
        init = archive.extractfile("sbin/init")
        assert init is not None
        text = init.read().decode()
    assert "stamp" in names and "bin/busybox" in names
    assert text.index('echo "$line"\n') < text.index(
        'echo "STAMP $boot COUNT $count" | dd of=/stamp conv=notrunc,fsync'
    )
