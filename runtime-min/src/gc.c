#include "gc.h"

#include <string.h>
#include <unistd.h>

#include "keys.h"

/* Digests that are needed, in a table with open addresses: they are random already. */
struct digests {
  struct eb_arena memory;
  uint8_t (*slot)[EB_SHA256_BYTES];
  size_t mask;
};

struct sweep {
  struct eb_store *store;
  struct eb_gc_result *result;
  struct eb_head *head;
  struct digests needed; /* by releases: files, and the releases themselves */
  size_t count;          /* of digests, before the table is there */
  bool counting;
  bool older_keys; /* a release is signed by a key that the newest trust file does not list */
  bool removed;
};

static bool digest_of(const char *id, uint8_t digest[EB_SHA256_BYTES]) {
  static const char hex[] = "0123456789abcdef";
  if (!eb_is_id(id)) return false;
  for (size_t i = 0; i < EB_SHA256_BYTES; i++) {
    const char *high = strchr(hex, id[2 * i]), *low = strchr(hex, id[2 * i + 1]);
    digest[i] = (uint8_t)((high - hex) << 4 | (low - hex));
  }
  return true;
}

static bool is_free(const uint8_t slot[EB_SHA256_BYTES]) {
  static const uint8_t none[EB_SHA256_BYTES];
  return memcmp(slot, none, EB_SHA256_BYTES) == 0;
}

/* Where the digest is, or would be. */
static uint8_t *slot_of(const struct digests *digests, const uint8_t digest[EB_SHA256_BYTES]) {
  uint64_t at;
  memcpy(&at, digest, sizeof at);
  for (size_t i = (size_t)at & digests->mask;; i = (i + 1) & digests->mask) {
    uint8_t *slot = digests->slot[i];
    if (is_free(slot) || memcmp(slot, digest, EB_SHA256_BYTES) == 0) return slot;
  }
}

static bool is_needed(const struct sweep *sweep, const char *name) {
  uint8_t digest[EB_SHA256_BYTES];
  return digest_of(name, digest) && !is_free(slot_of(&sweep->needed, digest));
}

static void need(struct sweep *sweep, const uint8_t digest[EB_SHA256_BYTES]) {
  if (sweep->counting) {
    sweep->count++;
  } else {
    memcpy(slot_of(&sweep->needed, digest), digest, EB_SHA256_BYTES);
  }
}

/* A release whose head is damaged cannot run again, so that nothing is needed for it. */
static eb_status need_release(struct sweep *sweep, const char *id, eb_error *error) {
  uint8_t digest[EB_SHA256_BYTES];
  if (!digest_of(id, digest)) return EB_OK;
  need(sweep, digest);
  eb_status status = eb_store_head(sweep->store, id, sweep->head, error);
  if (!status) status = eb_head_parse(sweep->head, error);
  if (status == EB_IO) return status;
  if (status) return EB_OK;
  for (uint32_t i = 0; i < sweep->head->manifest.file_count; i++) need(sweep, sweep->head->manifest.file[i].sha256);
  bool listed;
  status = eb_keys_lists(sweep->store, sweep->head->signer, &listed, error);
  sweep->older_keys |= !listed;
  return status;
}

static eb_status need_state(void *context, const char *name, eb_error *error) {
  struct sweep *sweep = context;
  struct eb_state state;
  bool found;
  if (strncmp(name, EB_NEW, strlen(EB_NEW)) == 0) return EB_OK;
  eb_status status = eb_store_state(sweep->store, name, &state, &found, error);
  if (status || !found) return status;
  status = need_release(sweep, state.current, error);
  return status ? status : need_release(sweep, state.previous, error);
}

static eb_status need_all(struct sweep *sweep, eb_error *error) {
  const struct eb_folder *functions = &sweep->store->functions;
  sweep->counting = true;
  eb_status status = eb_disk_list(functions, need_state, sweep, error);
  if (status) return status;
  size_t size = 64;
  while (size < 2 * sweep->count) size *= 2;
  status = eb_arena_open(&sweep->needed.memory, size * EB_SHA256_BYTES, error);
  if (status) return status;
  sweep->needed.slot = (uint8_t (*)[EB_SHA256_BYTES])(void *)sweep->needed.memory.base;
  sweep->needed.mask = size - 1;
  sweep->counting = false;
  return eb_disk_list(functions, need_state, sweep, error);
}

static eb_status size_of(const struct eb_folder *folder, const char *name, uint64_t *size, eb_error *error) {
  int fd;
  eb_status status = eb_disk_open(folder, name, &fd, size, error);
  if (fd >= 0) close(fd);
  /* What is no regular file is removed like any other thing that nobody needs. */
  return status == EB_REFUSED ? EB_OK : status;
}

static eb_status remove_file(struct sweep *sweep, const struct eb_folder *folder, const char *name, eb_error *error) {
  uint64_t size;
  eb_status status = size_of(folder, name, &size, error);
  if (!status) status = eb_disk_remove(folder, name, error);
  if (status) return status;
  sweep->result->bytes += folder == &sweep->store->blobs || folder == &sweep->store->partial ? size : 0;
  sweep->removed = true;
  return EB_OK;
}

static eb_status sweep_release(void *context, const char *name, eb_error *error) {
  struct sweep *sweep = context;
  if (is_needed(sweep, name)) return EB_OK;
  sweep->result->releases++;
  return remove_file(sweep, &sweep->store->releases, name, error);
}

static eb_status sweep_blob(void *context, const char *name, eb_error *error) {
  struct sweep *sweep = context;
  if (!is_needed(sweep, name)) {
    sweep->result->blobs++;
    return remove_file(sweep, &sweep->store->blobs, name, error);
  }
  uint64_t size;
  eb_status status = size_of(&sweep->store->blobs, name, &size, error);
  sweep->result->kept_blobs++;
  sweep->result->kept_bytes += size;
  return status;
}

static eb_status sweep_partial(void *context, const char *name, eb_error *error) {
  struct sweep *sweep = context;
  return remove_file(sweep, &sweep->store->partial, name, error);
}

static eb_status sweep_trust(void *context, const char *name, eb_error *error) {
  struct sweep *sweep = context;
  return sweep->older_keys ? EB_OK : remove_file(sweep, &sweep->store->trusts, name, error);
}

static eb_status sweep_folder(struct sweep *sweep, const struct eb_folder *folder,
                              eb_status (*visit)(void *, const char *, eb_error *), eb_error *error) {
  sweep->removed = false;
  eb_status status = eb_disk_list(folder, visit, sweep, error);
  return status || !sweep->removed ? status : eb_disk_sync(folder, error);
}

eb_status eb_gc(struct eb_store *store, struct eb_gc_result *result, eb_error *error) {
  struct sweep sweep = {.store = store, .result = result};
  struct eb_arena memory;
  *result = (struct eb_gc_result){0};
  eb_status status = eb_arena_open(&memory, sizeof *sweep.head, error);
  if (status) return status;
  sweep.head = eb_arena_take(&memory, sizeof *sweep.head);
  status = need_all(&sweep, error);
  if (!status) status = sweep_folder(&sweep, &store->releases, sweep_release, error);
  if (!status) status = sweep_folder(&sweep, &store->blobs, sweep_blob, error);
  if (!status) status = sweep_folder(&sweep, &store->partial, sweep_partial, error);
  if (!status) status = sweep_folder(&sweep, &store->trusts, sweep_trust, error);
  eb_arena_close(&sweep.needed.memory);
  eb_arena_close(&memory);
  if (!status && error) error->status = EB_OK; /* a head that is gone was no reason to stop */
  return status;
}
