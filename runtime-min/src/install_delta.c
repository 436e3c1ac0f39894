#include "install_delta.h"

#include <string.h>
#include <unistd.h>

#include "feed.h"

#define NO_FILE (-1)

static const char whole[] = "install the whole bundle instead";

/* A plan.bin in memory, for the codec of weights. */
struct plan {
  struct eb_arena memory;
  eb_bytes bytes;
};

struct update {
  struct eb_install *install;
  struct eb_delta *delta;
  struct eb_head *base;
  struct plan plan, old_plan;
  int old; /* the base's file of the same path */
};

static bool get_old(void *context, uint64_t offset, void *data, size_t size, eb_error *error) {
  const struct update *update = context;
  uint8_t *at = data;
  while (size) {
    ssize_t got = pread(update->old, at, size, (off_t)offset);
    if (got <= 0) {
      eb_fail(error, EB_IO, whole, "a file of the delta's base cannot be read from the store");
      return false;
    }
    at += got;
    offset += (uint64_t)got;
    size -= (size_t)got;
  }
  return true;
}

static bool put(void *context, const void *data, size_t size, eb_error *error) {
  struct update *update = context;
  return eb_install_add(update->install, data, size, error) == EB_OK;
}

/* The base's manifest and signature, before either is parsed: what the new ones are coded against. */
static eb_status read_head(struct update *update, eb_error *error) {
  struct eb_install *install = update->install;
  struct eb_head *head = install->head, *base = update->base;
  char id[EB_ID_TEXT];
  eb_digest_text(update->delta->base, id);
  eb_status status = eb_store_head(install->store, id, base, NULL);
  if (status) {
    return eb_fail(error, status == EB_REFUSED ? EB_REFUSED : status, whole,
                   "the delta starts from the release %.12s, which the store does not have", id);
  }
  eb_bytes manifest = {base->manifest_text, base->manifest_size},
           signature = {base->signature_text, base->signature_size};
  head->manifest_size = update->delta->manifest_size;
  head->signature_size = update->delta->signature_size;
  status = eb_delta_head(update->delta, manifest, signature, head->manifest_text, head->signature_text, error);
  if (status) return status;
  eb_head_identify(head, install->cpu->sha256);
  /* The base was verified when it was installed, and its ID holds. */
  return eb_head_parse(base, error);
}

/* The base must be whole: a patch of a damaged file makes another one. */
static eb_status check_base(const struct update *update, eb_error *error) {
  const struct eb_manifest *manifest = &update->base->manifest;
  for (uint32_t i = 0; i < manifest->file_count; i++) {
    bool holds;
    eb_status status = eb_store_holds(update->install->store, &manifest->file[i], &holds, error);
    if (status) return status;
    if (!holds) return eb_fail(error, EB_REFUSED, whole, "the delta's base has lost its %s", manifest->file[i].path);
  }
  return EB_OK;
}

static eb_status open_blob(const struct update *update, const struct eb_file *file, int *fd, eb_error *error) {
  char name[EB_ID_TEXT];
  uint64_t size;
  eb_digest_text(file->sha256, name);
  eb_status status = eb_disk_open(&update->install->store->blobs, name, fd, &size, error);
  if (status || (*fd >= 0 && size == file->size)) return status;
  return eb_fail(error, EB_REFUSED, whole, "the store has lost its %s", file->path);
}

static eb_status read_plan(const struct update *update, const struct eb_file *file, struct plan *plan,
                           eb_error *error) {
  int fd = NO_FILE;
  eb_status status = open_blob(update, file, &fd, error);
  if (!status) status = eb_arena_open(&plan->memory, file->size, error);
  eb_feed feed = eb_feed_of_fd(fd);
  if (!status) status = eb_feed_all(&feed, plan->memory.base, file->size, error);
  plan->bytes = (eb_bytes){plan->memory.base, file->size};
  if (fd >= 0) close(fd);
  return status;
}

/* Both plans; where they are the same, once. */
static eb_status read_plans(struct update *update, eb_error *error) {
  const struct eb_file *new_file = eb_manifest_file(&update->install->head->manifest, "plan.bin");
  const struct eb_file *old_file = eb_manifest_file(&update->base->manifest, "plan.bin");
  bool same = new_file && old_file && memcmp(new_file->sha256, old_file->sha256, EB_SHA256_BYTES) == 0;
  if (!new_file || !old_file || new_file->size + (same ? 0 : old_file->size) > EB_DELTA_PLANS_MAX)
    return eb_fail(error, EB_REFUSED, whole, "plan.bin is too large for a delta");
  eb_status status = read_plan(update, new_file, &update->plan, error);
  if (!status && !same) status = read_plan(update, old_file, &update->old_plan, error);
  if (same) update->old_plan.bytes = update->plan.bytes;
  return status;
}

static eb_status decode(struct update *update, enum eb_codec codec, const struct eb_file *file, eb_error *error) {
  const struct eb_file *old = eb_manifest_file(&update->base->manifest, file->path);
  struct eb_delta_file made = {.path = file->path,
                               .size = file->size,
                               .has_old = old != NULL,
                               .get_old = get_old,
                               .put = put,
                               .context = update};
  eb_status status = old ? open_blob(update, old, &update->old, error) : EB_OK;
  if (old) made.old_size = old->size;
  if (!status && codec == EB_CODEC_WEIGHTS) {
    if (!update->plan.memory.base) status = read_plans(update, error);
    made.plan = update->plan.bytes;
    made.old_plan = update->old_plan.bytes;
  }
  if (!status) status = eb_delta_decode(update->delta, codec, &made, error);
  if (update->old >= 0) close(update->old);
  update->old = NO_FILE;
  return status;
}

static eb_status take_file(struct update *update, uint32_t index, eb_error *error) {
  struct eb_install *install = update->install;
  const struct eb_file *file = &install->head->manifest.file[index];
  enum eb_codec codec;
  uint64_t from;
  bool wanted;
  eb_status status = eb_delta_next(update->delta, &codec, error);
  if (!status) status = eb_install_file(install, index, false, &from, &wanted, error);
  if (status || !wanted) return status ? status : eb_delta_skip(update->delta, error);
  if (codec == EB_CODEC_SAME) {
    return eb_fail(error, EB_REFUSED, whole, "the delta takes %s from its base, which has no such file", file->path);
  }
  status = decode(update, codec, file, error);
  if (!status) return eb_install_file_end(install, error);
  /* What a delta makes cannot be gone on with. */
  eb_install_drop(install);
  return status;
}

static eb_status run(struct update *update, eb_error *error) {
  struct eb_install *install = update->install;
  eb_status status = read_head(update, error);
  if (!status) status = eb_install_begin(install, error);
  if (!status && !install->complete) status = check_base(update, error);
  for (uint32_t i = 0; !status && !install->complete && i < install->head->manifest.file_count; i++) {
    status = take_file(update, i, error);
  }
  if (!status && !install->complete) status = eb_delta_end(update->delta, error);
  return status ? status : eb_install_commit(install, error);
}

eb_status eb_install_delta(struct eb_install *install, const eb_feed *feed, eb_error *error) {
  struct update update = {.install = install, .old = NO_FILE};
  struct eb_arena memory;
  size_t size = eb_align_up(sizeof *update.delta) + eb_align_up(sizeof *update.base) + eb_align_up(eb_delta_memory());
  eb_status status = eb_arena_open(&memory, size, error);
  if (status) return status;
  update.delta = eb_arena_take(&memory, sizeof *update.delta);
  update.base = eb_arena_take(&memory, sizeof *update.base);
  status = eb_delta_open(update.delta, feed, eb_arena_take(&memory, eb_delta_memory()), error);
  if (!status) status = run(&update, error);
  eb_arena_close(&update.plan.memory);
  eb_arena_close(&update.old_plan.memory);
  eb_arena_close(&memory);
  return status;
}

eb_status eb_install_feed(struct eb_install *install, const eb_feed *feed, eb_error *error) {
  struct eb_peeked peeked;
  eb_feed all;
  eb_status status = eb_feed_peek(&peeked, feed, &all, error);
  if (status) return status;
  bool is_delta = peeked.size == sizeof peeked.bytes && memcmp(peeked.bytes, EB_DELTA_MAGIC, sizeof peeked.bytes) == 0;
  return is_delta ? eb_install_delta(install, &all, error) : eb_install_archive(install, &all, error);
}
