/* The bundle archive (SPEC 1): verification in SPEC 2's order. */
#ifndef EB_BUNDLE_H
#define EB_BUNDLE_H

#include "manifest.h"
#include "minisign.h"

struct eb_bundle {
  struct eb_manifest manifest;
  char signer[17];
  const uint8_t *content[EB_FILES_MAX]; /* of manifest.file, inside the archive */
  char manifest_text[EB_MANIFEST_BYTES_MAX + 1];
  uint8_t signature_text[EB_SIGNATURE_BYTES_MAX];
};

/* Steps 1 to 5 of SPEC 2. `bundle` holds copies of manifest and signature and points into the archive for the rest. */
eb_status eb_bundle_verify(struct eb_bundle *bundle, eb_bytes archive, eb_bytes trust, const struct eb_cpu *cpu,
                           eb_error *error);

/* A file's bytes inside the archive; {NULL, 0} when there is none. */
eb_bytes eb_bundle_file(const struct eb_bundle *bundle, const char *path);

#endif
