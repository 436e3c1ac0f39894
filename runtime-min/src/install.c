#include "install.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "canary.h"
#include "feed.h"

#define HASH_BLOCK ((size_t)64)

static const char cut_off[] = "give the whole file again: what has arrived of it is kept and not written again";

eb_status eb_install_open(struct eb_install *install, eb_error *error) {
  install->fd = -1;
  size_t size = eb_align_up(sizeof *install->head) + EB_CHUNK + eb_align_up(EB_HEAD_BYTES_MAX);
  eb_status status = eb_arena_open(&install->memory, size, error);
  if (status) return status;
  install->head = eb_arena_take(&install->memory, sizeof *install->head);
  install->buffer = eb_arena_take(&install->memory, EB_CHUNK);
  install->head_bytes = eb_arena_take(&install->memory, EB_HEAD_BYTES_MAX);
  return EB_OK;
}

void eb_install_close(struct eb_install *install) {
  if (install->fd >= 0) close(install->fd);
  install->fd = -1;
  eb_arena_close(&install->memory);
}

eb_status eb_install_allows(const struct eb_state *state, const struct eb_named_release *release, eb_error *error) {
  if (state->current[0] && strcmp(state->target, release->target) != 0) {
    return eb_fail(error, EB_REFUSED, "take the bundle that was compiled for this kind of device",
                   "the bundle is for the target %s, what is installed as %s is for %s", release->target, release->name,
                   state->target);
  }
  if (eb_state_is_bad(state, release->id)) {
    return eb_fail(error, EB_REFUSED, "compile it again, with a higher release counter",
                   "this release of %s was installed before and is marked bad", release->name);
  }
  if (release->number >= state->floor) return EB_OK;
  bool previous = strcmp(state->previous, release->id) == 0;
  return eb_fail(error, EB_REFUSED,
                 previous ? "it is the previous release: edgebuild-run rollback NAME goes back to it"
                          : "take the newest bundle, or compile it again with a higher release counter",
                 "the bundle has release %u, lower than %u, which %s had already", release->number, state->floor,
                 release->name);
}

static struct eb_dated dated(const struct eb_install *install) {
  const struct eb_manifest *manifest = &install->head->manifest;
  return (struct eb_dated){manifest->name, manifest->release, manifest->made, manifest->expires, install->head->signer};
}

static eb_status check_state(const struct eb_install *install, eb_error *error) {
  const struct eb_manifest *manifest = &install->head->manifest;
  struct eb_named_release release = {manifest->name, manifest->target, install->head->id, manifest->release};
  return install->current ? EB_OK : eb_install_allows(&install->state, &release, error);
}

/* Whoever is between may put another release there, which is signed as well. */
static eb_status check_name(const struct eb_install *install, eb_error *error) {
  if (!install->named || strcmp(install->named, install->head->id) == 0) return EB_OK;
  return eb_fail(error, EB_REFUSED, "publish the release's folder again, whole",
                 "the bundle, %s %s, is not the release that release.json names", install->head->manifest.name,
                 install->head->manifest.version);
}

/* Nothing of the current release is missing or damaged. */
static eb_status check_complete(struct eb_install *install, eb_error *error) {
  install->complete = false;
  if (!install->current) return EB_OK;
  return eb_store_holds_all(install->store, &install->head->manifest, &install->complete, error);
}

static bool is_first_of_its_kind(const struct eb_manifest *manifest, uint32_t index) {
  for (uint32_t i = 0; i < index; i++) {
    if (memcmp(manifest->file[i].sha256, manifest->file[index].sha256, EB_SHA256_BYTES) == 0) return false;
  }
  return true;
}

/* What is to be written, and what there is room for. */
static eb_status measure(const struct eb_install *install, uint64_t *missing, uint64_t *room, eb_error *error) {
  const struct eb_manifest *manifest = &install->head->manifest;
  *missing = 0;
  for (uint32_t i = 0; i < manifest->file_count; i++) {
    uint64_t there = 0;
    if (!is_first_of_its_kind(manifest, i)) continue;
    eb_status status = eb_store_arrived(install->store, &manifest->file[i], &there, error);
    if (status) return status;
    *missing += manifest->file[i].size - there;
  }
  return eb_disk_room(&install->store->blobs, room, error);
}

/* A disk that is too small is better met before anything is written to it. What other installations left half done
 * must not fill it for ever. */
static eb_status check_room(struct eb_install *install, eb_error *error) {
  uint64_t missing, room;
  eb_status status = measure(install, &missing, &room, error);
  if (!status && missing > room) {
    eb_gc(install->store, &install->removed, NULL);
    status = measure(install, &missing, &room, error);
  }
  if (status || missing <= room) return status;
  return eb_fail(error, EB_IO, "free some space: edgebuild-run gc removes what no release needs any more",
                 "the release needs %llu bytes more in the store, and its disk has room for %llu",
                 (unsigned long long)missing, (unsigned long long)room);
}

eb_status eb_install_begin(struct eb_install *install, eb_error *error) {
  struct eb_head *head = install->head;
  install->head_size = eb_head_bytes(head, install->head_bytes);
  eb_status status = eb_keys_to_install(install->store, install->keys, error);
  if (!status) status = eb_head_verify(head, install->keys->file, error);
  if (!status) status = check_name(install, error);
  if (!status) status = eb_manifest_fits(&head->manifest, install->cpu, error);
  if (!status) status = eb_store_state(install->store, head->manifest.name, &install->state, &install->found, error);
  if (status) return status;
  eb_keys_forget(install->keys, &install->state);
  install->current = install->found && strcmp(install->state.current, head->id) == 0;
  status = check_state(install, error);
  if (!status) status = check_complete(install, error);
  if (status || install->complete) return status;
  /* A device keeps what it has, and may mend it. */
  struct eb_dated when = dated(install);
  if (!install->current) status = eb_keys_expiry(install->store, install->keys, "the bundle", &when, error);
  return status ? status : check_room(install, error);
}

/* Hashes the first `size` bytes of what has arrived before; a rest that is no whole block is cut off. */
static eb_status hash_arrived(struct eb_install *install, uint64_t size, eb_error *error) {
  eb_feed feed = eb_feed_of_fd(install->fd);
  while (install->size < size) {
    size_t part = size - install->size < EB_CHUNK ? (size_t)(size - install->size) : EB_CHUNK;
    eb_status status = eb_feed_all(&feed, install->buffer, part, error);
    if (status) return status;
    eb_sha256_add(&install->hash, install->buffer, part);
    install->size += part;
  }
  return eb_disk_truncate(&install->store->partial, install->name, install->fd, install->size, error);
}

static eb_status begin_file(struct eb_install *install, bool resume, uint64_t *from, eb_error *error) {
  uint64_t arrived;
  if (install->fd >= 0) close(install->fd);
  eb_status status = eb_disk_begin(&install->store->partial, install->name, &install->fd, &arrived, error);
  if (status) return status;
  eb_sha256_begin(&install->hash, install->cpu->sha256);
  install->size = 0;
  install->held = 0;
  /* The last byte always comes from the source, so that a file never ends before it began. */
  if (!resume || arrived >= install->file->size) arrived = 0;
  status = hash_arrived(install, arrived - arrived % HASH_BLOCK, error);
  *from = install->resumed = install->size;
  return status;
}

eb_status eb_install_file(struct eb_install *install, uint32_t index, bool resume, uint64_t *from, bool *wanted,
                          eb_error *error) {
  install->file = &install->head->manifest.file[index];
  eb_digest_text(install->file->sha256, install->name);
  bool holds;
  eb_status status = eb_store_holds(install->store, install->file, &holds, error);
  if (status) return status;
  *wanted = !holds;
  *from = install->file->size;
  if (!holds) status = begin_file(install, resume, from, error);
  install->kept += *from;
  return status;
}

static eb_status hash_and_write(struct eb_install *install, const void *data, size_t size, eb_error *error) {
  eb_sha256_add(&install->hash, data, size);
  install->size += size;
  install->written += size;
  return eb_disk_append(&install->store->partial, install->name, install->fd, data, size, error);
}

/* Whole blocks go on as they are; what is left of the last one waits for the next bytes. */
eb_status eb_install_add(struct eb_install *install, const void *data, size_t size, eb_error *error) {
  const uint8_t *at = data;
  if (size > install->file->size - install->size - install->held) {
    return eb_fail(error, EB_REFUSED, EB_HINT_DAMAGED, "more bytes came for %s than it has", install->file->path);
  }
  if (install->held) {
    size_t room = HASH_BLOCK - install->held, taken = size < room ? size : room;
    memcpy(install->buffer + install->held, at, taken);
    install->held += taken;
    at += taken;
    size -= taken;
    if (install->held < HASH_BLOCK) return EB_OK;
    install->held = 0;
    eb_status status = hash_and_write(install, install->buffer, HASH_BLOCK, error);
    if (status) return status;
  }
  size_t rest = size % HASH_BLOCK;
  eb_status status = size > rest ? hash_and_write(install, at, size - rest, error) : EB_OK;
  if (rest) memcpy(install->buffer, at + size - rest, rest);
  install->held = rest;
  return status;
}

void eb_install_drop(struct eb_install *install) {
  if (install->fd < 0) return;
  close(install->fd);
  install->fd = -1;
  eb_disk_remove(&install->store->partial, install->name, NULL);
}

/* After a power cut what has arrived may be zeros that nobody wrote. */
static eb_status refuse_resumed(struct eb_install *install, eb_error *error) {
  install->stale = !eb_disk_has(&install->store->partial, install->name);
  install->kept -= install->resumed;
  return eb_fail(
      error, EB_IO, "give the whole file again: what had arrived of this one is dropped",
      "the bundle's file %s, of which %llu bytes had arrived before, is not the one that was signed (SHA-256)",
      install->file->path, (unsigned long long)install->resumed);
}

eb_status eb_install_file_end(struct eb_install *install, eb_error *error) {
  uint8_t digest[EB_SHA256_BYTES];
  eb_status status =
      eb_disk_append(&install->store->partial, install->name, install->fd, install->buffer, install->held, error);
  if (status) return status;
  bool whole = install->size + install->held == install->file->size;
  install->written += install->held;
  eb_sha256_end(&install->hash, install->buffer, install->held, digest);
  if (!whole || memcmp(digest, install->file->sha256, sizeof digest) != 0) {
    /* The next attempt starts from the file's beginning. */
    eb_install_drop(install);
    return install->resumed ? refuse_resumed(install, error) : eb_archive_other_file(install->file->path, error);
  }
  status = eb_disk_finish(&install->store->partial, install->name, install->fd, &install->store->blobs, error);
  close(install->fd);
  install->fd = -1;
  install->files_written++;
  return status;
}

/* What an installation that was ended left in its place need not be durable yet. */
static eb_status make_durable(const struct eb_store *store, eb_error *error) {
  const struct eb_folder *folders[] = {&store->blobs, &store->releases, &store->root};
  eb_status status = EB_OK;
  for (size_t i = 0; !status && i < sizeof folders / sizeof *folders; i++) status = eb_disk_sync(folders[i], error);
  return status;
}

static eb_status put_head(const struct eb_install *install, eb_error *error) {
  const struct eb_folder *releases = &install->store->releases;
  struct eb_arena memory;
  eb_status status = eb_arena_open(&memory, EB_HEAD_BYTES_MAX + 1, error);
  if (status) return status;
  size_t size;
  bool found;
  eb_bytes bytes = {install->head_bytes, install->head_size};
  status = eb_disk_read(releases, install->head->id, memory.base, EB_HEAD_BYTES_MAX, &size, &found, NULL);
  bool same = !status && found && size == bytes.size && memcmp(memory.base, bytes.data, size) == 0;
  eb_arena_close(&memory);
  return same ? EB_OK : eb_disk_put(releases, install->head->id, bytes, 0444, error);
}

/* Nothing was installed under the name so far; releases of it may have failed their canary. */
static void begin_name(const struct eb_install *install, struct eb_state *state) {
  snprintf(state->target, sizeof state->target, "%s", install->head->manifest.target);
  state->floor = 1;
}

/* A release that failed its canary is not tried again. */
static void mark_bad(struct eb_install *install) {
  const char *name = install->head->manifest.name;
  struct eb_state state;
  bool found;
  eb_status status = eb_store_state_begin(install->store, name, &state, &found, NULL);
  if (status) return;
  bool marks = strcmp(state.current, install->head->id) != 0;
  if (!found) begin_name(install, &state);
  if (marks) eb_state_mark_bad(&state, install->head->id);
  if (marks && strcmp(state.previous, install->head->id) == 0) state.previous[0] = 0;
  status = eb_store_state_end(install->store, name, marks ? &state : NULL, NULL);
  if (!status) eb_gc(install->store, &install->removed, NULL);
}

static eb_status put_state(struct eb_install *install, eb_error *error) {
  const struct eb_manifest *manifest = &install->head->manifest;
  struct eb_state state;
  bool found;
  eb_status status = eb_store_state_begin(install->store, manifest->name, &state, &found, error);
  if (status) return status;
  if (!found) begin_name(install, &state);
  eb_keys_forget(install->keys, &state);
  bool changes = strcmp(state.current, install->head->id) != 0;
  eb_state_install(&state, install->head->id, manifest->release, install->head->signer);
  status = eb_store_state_end(install->store, manifest->name, changes ? &state : NULL, error);
  if (!status) install->state = state;
  return status;
}

eb_status eb_install_settle(struct eb_install *install, eb_error *error) {
  eb_status status = eb_disk_sync(&install->store->functions, error);
  if (!status) eb_gc(install->store, &install->removed, &install->warning);
  return status;
}

eb_status eb_install_commit(struct eb_install *install, eb_error *error) {
  struct eb_dated when = dated(install);
  eb_status status = put_head(install, error);
  if (!status) status = make_durable(install->store, error);
  if (!status && install->complete) {
    status = eb_keys_accept(install->store, install->keys, &when, error);
    return status ? status : eb_install_settle(install, error);
  }
  if (!status) status = eb_canary(install->store, install->head, install->trust_path, install->cpu, error);
  if (status == EB_CHECK) mark_bad(install);
  if (!status) status = eb_keys_accept(install->store, install->keys, &when, error);
  if (!status) status = put_state(install, error);
  /* The release is installed, whether or not what is old can be removed now. */
  if (!status) eb_gc(install->store, &install->removed, &install->warning);
  return status;
}

/* The data of a member, as it comes: what arrived before the source ended is kept for the next attempt. */
static eb_status read_data(struct eb_install *install, const eb_feed *feed, uint64_t left, eb_error *error) {
  uint8_t chunk[EB_CHUNK];
  eb_status status = EB_OK;
  while (!status && left) {
    size_t wanted = left < EB_CHUNK ? (size_t)left : EB_CHUNK, filled = 0;
    while (!status && filled < wanted) {
      size_t got;
      status = eb_feed_some(feed, chunk + filled, wanted - filled, &got, error);
      if (!status && got == 0) status = eb_fail(error, EB_REFUSED, cut_off, "the bundle is cut off");
      filled += got;
    }
    eb_status added = eb_install_add(install, chunk, filled, status ? NULL : error);
    if (!status) status = added;
    left -= filled;
  }
  return status;
}

static eb_status read_member(struct eb_install *install, uint32_t index, const eb_feed *feed, eb_error *error) {
  const struct eb_file *file = &install->head->manifest.file[index];
  uint64_t from;
  bool wanted;
  eb_status status = eb_archive_expect(feed, file->path, file->size, error);
  if (!status) status = eb_install_file(install, index, true, &from, &wanted, error);
  if (!status) status = eb_feed_skip(feed, from, error);
  if (!status && wanted) status = read_data(install, feed, file->size - from, error);
  if (!status && wanted) status = eb_install_file_end(install, error);
  return status ? status : eb_archive_pad(feed, file->path, file->size, error);
}

eb_status eb_install_archive(struct eb_install *install, const eb_feed *feed, eb_error *error) {
  install->stale = false;
  eb_status status = eb_head_read(install->head, feed, install->cpu->sha256, error);
  if (!status) status = eb_install_begin(install, error);
  for (uint32_t i = 0; !status && !install->complete && i < install->head->manifest.file_count; i++) {
    status = read_member(install, i, feed, error);
  }
  if (!status && !install->complete) status = eb_archive_end(feed, error);
  return status ? status : eb_install_commit(install, error);
}
