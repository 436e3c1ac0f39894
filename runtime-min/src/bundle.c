#include "bundle.h"

#include <stdio.h>
#include <string.h>

void eb_digest_text(const uint8_t digest[EB_SHA256_BYTES], char text[EB_ID_TEXT]) {
  for (unsigned i = 0; i < EB_SHA256_BYTES; i++) snprintf(text + 2 * i, 3, "%02x", digest[i]);
}

void eb_head_identify(struct eb_head *head, bool accelerated) {
  uint8_t digest[EB_SHA256_BYTES];
  eb_sha256(accelerated, head->manifest_text, head->manifest_size, digest);
  eb_digest_text(digest, head->id);
}

eb_status eb_head_read(struct eb_head *head, const eb_feed *feed, bool accelerated, eb_error *error) {
  eb_status status =
      eb_archive_short(feed, "manifest", head->manifest_text, EB_MANIFEST_BYTES_MAX, &head->manifest_size, error);
  if (!status) {
    status = eb_archive_short(feed, "manifest.minisig", head->signature_text, EB_SIGNATURE_BYTES_MAX,
                              &head->signature_size, error);
  }
  if (!status) eb_head_identify(head, accelerated);
  return status;
}

eb_status eb_head_verify(struct eb_head *head, eb_bytes trust_file, eb_error *error) {
  struct eb_signature signature;
  struct eb_trust trust;
  eb_bytes text = {head->manifest_text, head->manifest_size};
  eb_bytes signature_file = {head->signature_text, head->signature_size};
  eb_status status = eb_signature_parse(signature_file, &signature, error);
  if (!status) status = eb_trust_open(trust_file, &trust, error);
  if (!status) status = eb_signature_verify(&signature, text, &trust, error);
  return status ? status : eb_head_parse(head, error);
}

eb_status eb_head_parse(struct eb_head *head, eb_error *error) {
  struct eb_signature signature;
  eb_bytes signature_file = {head->signature_text, head->signature_size};
  eb_status status = eb_signature_parse(signature_file, &signature, error);
  if (!status) status = eb_manifest_parse(head->manifest_text, head->manifest_size, &head->manifest, error);
  if (!status) eb_key_id_text(signature.key_id, head->signer);
  return status;
}

static size_t put_member(const char *name, const void *data, size_t size, uint8_t *out) {
  size_t padding = eb_archive_padding(size);
  eb_archive_header(name, size, out);
  memcpy(out + EB_BLOCK, data, size);
  memset(out + EB_BLOCK + size, 0, padding);
  return EB_BLOCK + size + padding;
}

size_t eb_head_bytes(const struct eb_head *head, uint8_t *out) {
  size_t size = put_member("manifest", head->manifest_text, head->manifest_size, out);
  return size + put_member("manifest.minisig", head->signature_text, head->signature_size, out + size);
}

static bool is_golden(const struct eb_file *file) {
  return strncmp(file->path, "golden/", 7) == 0;
}

static bool is_kept(const struct eb_manifest *manifest, const struct eb_file *file, enum eb_keep keep) {
  static const char *const program[] = {"program.so", "plan.bin", "weights.bin"};
  if (keep == EB_KEEP_NONE) return false;
  for (size_t i = 0; i < sizeof program / sizeof *program; i++) {
    if (strcmp(file->path, program[i]) == 0) return true;
  }
  return is_golden(file) && (keep == EB_KEEP_GOLDEN || !manifest->checked);
}

/* A file's data from its feed, into memory of its own when it is kept. */
static eb_status read_data(struct eb_bundle *bundle, uint32_t index, const eb_feed *feed, bool accelerated, bool kept,
                           eb_error *error) {
  const struct eb_file *file = &bundle->head.manifest.file[index];
  struct eb_arena *content = &bundle->content[index];
  uint8_t digest[EB_SHA256_BYTES];
  eb_status status = kept ? eb_arena_open_whole(content, file->size, error) : EB_OK;
  if (!status) status = eb_feed_hashed(feed, file->size, accelerated, content->base, digest, error);
  if (status) return status;
  if (memcmp(digest, file->sha256, sizeof digest) != 0) return eb_archive_other_file(file->path, error);
  return kept ? eb_arena_seal(content, error) : EB_OK;
}

static eb_status read_member(struct eb_bundle *bundle, uint32_t index, const eb_feed *feed, bool accelerated, bool kept,
                             eb_error *error) {
  const struct eb_file *file = &bundle->head.manifest.file[index];
  eb_status status = eb_archive_expect(feed, file->path, file->size, error);
  if (!status) status = read_data(bundle, index, feed, accelerated, kept, error);
  return status ? status : eb_archive_pad(feed, file->path, file->size, error);
}

static eb_status read_single(struct eb_bundle *bundle, uint32_t index, const eb_files *files, bool accelerated,
                             bool kept, eb_error *error) {
  const struct eb_file *file = &bundle->head.manifest.file[index];
  eb_feed feed;
  eb_status status = files->open(files->context, file->path, file->size, file->sha256, &feed, error);
  if (status) return status;
  status = read_data(bundle, index, &feed, accelerated, kept, error);
  files->close(files->context, &feed);
  /* What cannot be read any more is as good as damaged. */
  return status == EB_IO ? eb_fail(error, EB_REFUSED, EB_HINT_DAMAGED, "cannot read the file %s", file->path) : status;
}

/* Step 4. */
static eb_status read_files(struct eb_bundle *bundle, const eb_feed *feed, const eb_files *files, bool accelerated,
                            enum eb_keep keep, eb_error *error) {
  for (uint32_t i = 0; i < bundle->head.manifest.file_count; i++) {
    bool kept = is_kept(&bundle->head.manifest, &bundle->head.manifest.file[i], keep);
    eb_status status = files ? read_single(bundle, i, files, accelerated, kept, error)
                             : read_member(bundle, i, feed, accelerated, kept, error);
    if (status) return status;
  }
  return files ? EB_OK : eb_archive_end(feed, error);
}

/* Whoever names a release by its ID gets that one. */
static eb_status check_id(const struct eb_head *head, const eb_files *files, eb_error *error) {
  if (!files || strcmp(head->id, files->id) == 0) return EB_OK;
  return eb_fail(error, EB_REFUSED, EB_HINT_DAMAGED, "the manifest is not the one of the release %.16s", files->id);
}

eb_status eb_bundle_read(struct eb_bundle *bundle, const eb_feed *feed, const eb_files *files, eb_bytes trust,
                         const struct eb_cpu *cpu, enum eb_keep keep, eb_error *error) {
  struct eb_head *head = &bundle->head;
  eb_status status = eb_head_read(head, feed, cpu->sha256, error);
  if (!status) status = check_id(head, files, error);
  if (!status) status = eb_head_verify(head, trust, error);
  /* A bundle for another machine is read to its end like any other, but takes no memory. */
  if (!status && eb_manifest_fits(&head->manifest, cpu, NULL)) keep = EB_KEEP_NONE;
  if (!status) status = read_files(bundle, feed, files, cpu->sha256, keep, error);
  if (!status) status = eb_manifest_fits(&head->manifest, cpu, error);
  return status;
}

eb_bytes eb_bundle_file(const struct eb_bundle *bundle, const char *path) {
  const struct eb_file *file = eb_manifest_file(&bundle->head.manifest, path);
  const struct eb_arena *content = file ? &bundle->content[file - bundle->head.manifest.file] : NULL;
  if (!content || !content->base) return (eb_bytes){NULL, 0};
  return (eb_bytes){content->base, file->size};
}

void eb_bundle_drop(struct eb_bundle *bundle, const struct eb_file *file) {
  eb_arena_close(&bundle->content[file - bundle->head.manifest.file]);
}

void eb_bundle_drop_golden(struct eb_bundle *bundle) {
  for (uint32_t i = 0; i < bundle->head.manifest.file_count; i++) {
    const struct eb_file *file = &bundle->head.manifest.file[i];
    if (is_golden(file)) eb_bundle_drop(bundle, file);
  }
}

void eb_bundle_close(struct eb_bundle *bundle) {
  for (uint32_t i = 0; i < bundle->head.manifest.file_count; i++) eb_arena_close(&bundle->content[i]);
}
