"""A release: bundles of one recipe for several targets, with deltas, sums, index, SBOM and provenance, in one folder.

    make.py        builds it: `make(order, signing, progress)`
    previous.py    releases of before: what deltas start from, and which counter comes next
    index.py       `release.json`, SPEC section 13
    sums.py        `SHA256SUMS`
    sbom.py        `NAME-VERSION.cdx.json`, CycloneDX 1.6
    provenance.py  `NAME-VERSION.intoto.jsonl`: in-toto, SLSA, DSSE
    folder.py      the folder: appears whole or not at all, is read and verified
    oci.py         the folder as an OCI image layout, and back

Everything that SHA256SUMS lists is a function of recipe, targets, previous bundles, versions of packages and the key:
no path, no user, no clock is in it. Reports hold measured times; they lie beside the bundles, and SHA256SUMS leaves
them out.
"""
