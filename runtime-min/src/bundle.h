/* A release: its head, manifest and signature, and its files, verified in SPEC 2's order. The files follow the head in
 * a bundle's archive (SPEC 1), or lie somewhere else, one by one (SPEC 11). */
#ifndef EB_BUNDLE_H
#define EB_BUNDLE_H

#include "archive.h"
#include "arena.h"
#include "manifest.h"
#include "trust.h"

#define EB_ID_TEXT (2u * EB_SHA256_BYTES + 1)
/* Both members of a head, as they stand in an archive. */
#define EB_HEAD_BYTES_MAX (EB_MANIFEST_BYTES_MAX + EB_SIGNATURE_BYTES_MAX + 2 * EB_BLOCK)

struct eb_head {
  struct eb_manifest manifest;
  char signer[17];
  char id[EB_ID_TEXT]; /* the manifest's SHA-256 */
  size_t manifest_size;
  size_t signature_size;
  char manifest_text[EB_MANIFEST_BYTES_MAX + 1]; /* parsed in place */
  uint8_t signature_text[EB_SIGNATURE_BYTES_MAX];
};

/* Which files stay in memory once their hash held. */
enum eb_keep { EB_KEEP_NONE, EB_KEEP_PROGRAM, EB_KEEP_GOLDEN /* and the program */ };

struct eb_bundle {
  struct eb_head head;
  struct eb_arena content[EB_FILES_MAX]; /* of manifest.file, read-only; empty where it was not kept */
};

/* Step 1: the bytes of manifest and signature, and the ID; nothing of them is looked into. */
eb_status eb_head_read(struct eb_head *head, const eb_feed *feed, bool accelerated, eb_error *error);

/* The ID of a head whose bytes are there. */
void eb_head_identify(struct eb_head *head, bool accelerated);

/* Steps 2 and 3, of a head that was read: the signature, and only then the manifest. */
eb_status eb_head_verify(struct eb_head *head, eb_bytes trust, eb_error *error);

/* Step 3 alone, for a head whose ID is one that was verified before. */
eb_status eb_head_parse(struct eb_head *head, eb_error *error);

/* Both members as they stand in an archive, of a head that was read and not parsed yet, into out[EB_HEAD_BYTES_MAX]. */
size_t eb_head_bytes(const struct eb_head *head, uint8_t *out);

/* A SHA-256 in lower-case hex. */
void eb_digest_text(const uint8_t digest[EB_SHA256_BYTES], char text[EB_ID_TEXT]);

/* Steps 1 to 5 of SPEC 2, front to back: what is kept was hashed where it lies, in memory that nobody else writes to.
 * `files`: where the files are; NULL: behind the head. `bundle` is all zeros before; it needs
 * eb_bundle_close after a failure too. The golden samples of a bundle that was not checked are kept with its program.
 */
eb_status eb_bundle_read(struct eb_bundle *bundle, const eb_feed *feed, const eb_files *files, eb_bytes trust,
                         const struct eb_cpu *cpu, enum eb_keep keep, eb_error *error);

/* A kept file's bytes, aligned to 64; {NULL, 0} for another. */
eb_bytes eb_bundle_file(const struct eb_bundle *bundle, const char *path);

/* Gives the memory of a kept file back. */
void eb_bundle_drop(struct eb_bundle *bundle, const struct eb_file *file);

/* The same for all golden samples. */
void eb_bundle_drop_golden(struct eb_bundle *bundle);

void eb_bundle_close(struct eb_bundle *bundle);

#endif
