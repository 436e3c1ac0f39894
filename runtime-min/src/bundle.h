/* The bundle archive (SPEC 1): verification in SPEC 2's order. */
#ifndef EB_BUNDLE_H
#define EB_BUNDLE_H

#include "arena.h"
#include "manifest.h"
#include "trust.h"

/* Which files stay in memory once their hash held. */
enum eb_keep { EB_KEEP_NONE, EB_KEEP_PROGRAM, EB_KEEP_GOLDEN /* and the program */ };

struct eb_bundle {
  struct eb_manifest manifest;
  char signer[17];
  struct eb_arena content[EB_FILES_MAX]; /* of manifest.file, read-only; empty where it was not kept */
  char manifest_text[EB_MANIFEST_BYTES_MAX + 1];
  uint8_t signature_text[EB_SIGNATURE_BYTES_MAX];
};

/* Steps 1 to 5 of SPEC 2, front to back: what is kept was hashed where it lies, in memory that nobody else writes to.
 * `bundle` is all zeros before; it needs
 * eb_bundle_close after a failure too. The golden samples of a bundle that was not checked are kept with its program.
 */
eb_status eb_bundle_read(struct eb_bundle *bundle, const eb_feed *feed, eb_bytes trust, const struct eb_cpu *cpu,
                         enum eb_keep keep, eb_error *error);

/* A kept file's bytes, aligned to 64; {NULL, 0} for another. */
eb_bytes eb_bundle_file(const struct eb_bundle *bundle, const char *path);

/* Gives the memory of a kept file back. */
void eb_bundle_drop(struct eb_bundle *bundle, const struct eb_file *file);

/* The same for all golden samples. */
void eb_bundle_drop_golden(struct eb_bundle *bundle);

void eb_bundle_close(struct eb_bundle *bundle);

#endif
