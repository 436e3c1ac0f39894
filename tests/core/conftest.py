import hashlib

import pytest
from bundles import FILES, Sample, make_bundle, make_manifest

from edgebuild.core.minisign import SecretKey


@pytest.fixture(scope="session")
def key() -> SecretKey:
    return SecretKey(bytes(range(8)), hashlib.sha256(b"a key for tests").digest())


@pytest.fixture(scope="session")
def sample(key: SecretKey) -> Sample:
    made = make_manifest(FILES)
    return Sample(make_bundle(made, FILES, key), made, FILES, key, {key.key_id: key.public})
