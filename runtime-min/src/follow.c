#include "follow.h"

#include <string.h>
#include <unistd.h>

#include "feed.h"

#define INDEX "release.json"
#define SIGNATURE "release.json.minisig"
#define TRUST "trust"
#define INDEX_ATTEMPTS 3 /* a folder that is being published may have one of the two files of another release */
#define NO_FILE (-1)

struct work {
  struct eb_follow *follow;
  struct eb_install *install;
  struct eb_remote *remote;
  struct eb_index *index;
  uint8_t *text, *trust;
  size_t text_size;
  struct eb_state state;
  bool found;
  eb_status unnamed; /* what is wrong with the name of the index */
  eb_error why;
  bool missing;  /* the file that was read last is not there */
  bool not_kept; /* a trust file that was taken, by the store */
};

static eb_status read_file(struct work *work, const char *name, void *buffer, size_t limit, size_t *size,
                           eb_error *error) {
  bool found;
  eb_status status = eb_remote_read(work->remote, name, buffer, limit, size, &found, error);
  work->missing = !found;
  if (status || found) return status;
  return eb_fail(error, EB_IO, "name the folder that edgebuild release wrote, and publish it whole", "%.200s has no %s",
                 work->follow->base, name);
}

/* Nothing of the index is looked at before its signature holds. */
static eb_status read_verified(struct work *work, eb_error *error) {
  uint8_t signature_text[EB_SIGNATURE_BYTES_MAX];
  eb_bytes file = {signature_text, 0};
  struct eb_signature signature;
  struct eb_trust trust;
  eb_status status = read_file(work, INDEX, work->text, EB_INDEX_BYTES_MAX, &work->text_size, error);
  if (!status) status = read_file(work, SIGNATURE, signature_text, sizeof signature_text, &file.size, error);
  if (!status) status = eb_signature_parse(file, &signature, error);
  if (!status) status = eb_keys_to_install(work->install->store, work->install->keys, error);
  if (!status) status = eb_trust_open(work->install->keys->file, &trust, error);
  eb_bytes text = {work->text, work->text_size};
  return status ? status : eb_signature_verify(&signature, text, &trust, error);
}

/* The trust file beside the index: the one way to learn of a release key that the device does not know yet. */
static eb_status take_trust(struct work *work, eb_error *error) {
  eb_bytes file = {work->trust, 0};
  eb_status status = read_file(work, TRUST, work->trust, EB_TRUST_BYTES_MAX, &file.size, error);
  if (status) return status;
  status = eb_keys_follow(work->install->store, work->install->keys, file, error);
  work->not_kept = status == EB_IO;
  return status;
}

/* An index that is refused may be signed by a key that only the next trust file lists, or stand beside a signature that
 * is being replaced. */
static eb_status read_trusted(struct work *work, eb_error *error) {
  eb_status status = read_verified(work, error);
  if (status != EB_REFUSED) return status;
  eb_error why;
  eb_status taken = take_trust(work, &why);
  /* What the store cannot remember does not count: the canary would not know it, and the release be marked bad. */
  bool unread = taken == EB_IO && !work->missing;
  if (work->not_kept || unread) return *error = why, taken;
  bool newer = taken == EB_OK;
  for (int attempt = 1; status == EB_REFUSED && attempt < INDEX_ATTEMPTS; attempt++)
    status = read_verified(work, error);
  work->follow->new_trust = newer;
  return status;
}

static uint32_t trust_version(const struct work *work) {
  struct eb_trust trust;
  return eb_trust_open(work->install->keys->file, &trust, NULL) ? 0 : trust.version;
}

/* What the index says of trust and days, before its bundles count. */
static eb_status check_index(struct work *work, eb_error *error) {
  const struct eb_index *index = work->index;
  const struct eb_install *install = work->install;
  uint32_t known = trust_version(work);
  if (index->trust.name[0] && known && index->trust_version > known) {
    eb_status status = take_trust(work, error);
    if (status) return status;
    work->follow->new_trust = true;
  }
  struct eb_dated dated = {index->name, index->release, index->made, index->expires, ""};
  return eb_keys_expiry(install->store, install->keys, INDEX, &dated, error);
}

/* What the target is follows from what is installed under the index's name. */
static const char *target_of(void *context, const char *name) {
  struct work *work = context;
  const struct eb_follow *follow = work->follow;
  if (follow->name && strcmp(name, follow->name) != 0) {
    work->unnamed = eb_fail(&work->why, EB_REFUSED, "name the folder of that function's releases",
                            "%.200s has releases of %s, not of %s", follow->base, name, follow->name);
    return NULL;
  }
  work->unnamed = eb_store_state(work->install->store, name, &work->state, &work->found, &work->why);
  if (work->unnamed) return NULL;
  const char *target = work->found ? work->state.target : follow->target;
  if (!target) {
    work->unnamed = eb_fail(&work->why, EB_INPUT, "say for which kind of device the first time: --target NAME",
                            "nothing is installed as %s yet", name);
  }
  return target;
}

static eb_status read_index(struct work *work, eb_error *error) {
  eb_status status = read_trusted(work, error);
  if (!status) status = eb_index_parse((eb_bytes){work->text, work->text_size}, target_of, work, work->index, error);
  if (!status && work->unnamed) return *error = work->why, work->unnamed;
  if (!status) status = check_index(work, error);
  if (status || work->index->has_bundle) return status;
  return eb_fail(error, EB_REFUSED, "edgebuild release --targets makes bundles for more kinds of devices",
                 "release %s of %s has no bundle for %s", work->index->version, work->index->name,
                 work->found ? work->state.target : work->follow->target);
}

static const struct eb_index_delta *find_delta(const struct work *work) {
  char id[EB_ID_TEXT];
  for (uint32_t i = 0; work->found && i < work->index->delta_count; i++) {
    eb_digest_text(work->index->delta[i].from, id);
    if (strcmp(id, work->state.current) == 0) return &work->index->delta[i];
  }
  return NULL;
}

/* What other rounds left half done must not keep it from arriving. */
static eb_status begin_partial(struct work *work, const struct eb_index_file *file, const char *name, int *fd,
                               uint64_t *at, eb_error *error) {
  struct eb_store *store = work->install->store;
  uint64_t room;
  eb_status status = eb_disk_begin(&store->partial, name, fd, at, error);
  if (!status) status = eb_disk_room(&store->partial, &room, error);
  if (status || *at > file->size || file->size - *at <= room) return status;
  close(*fd);
  *fd = NO_FILE;
  eb_gc(store, &work->install->removed, NULL);
  return eb_disk_begin(&store->partial, name, fd, at, error);
}

/* A delta is decoded in one go, so it is fetched first; what has arrived of it stays for the next attempt. */
static eb_status fetch(struct work *work, const struct eb_index_file *file, const char *name, int fd, uint64_t at,
                       eb_error *error) {
  const struct eb_folder *partial = &work->install->store->partial;
  if (at > file->size) at = 0;
  eb_status status = eb_disk_truncate(partial, name, fd, at, error);
  if (status) return status;
  eb_remote_file(work->remote, file->name, file->size);
  eb_feed feed = eb_remote_feed(work->remote);
  if (at && feed.skip(feed.context, at)) return *error = work->remote->error, error->status;
  while (!status && at < file->size) {
    uint8_t chunk[16 << 10];
    ssize_t got = feed.read(feed.context, chunk, sizeof chunk);
    if (got <= 0) return *error = work->remote->error, error->status;
    status = eb_disk_append(partial, name, fd, chunk, (size_t)got, error);
    at += (uint64_t)got;
  }
  return status;
}

static eb_status check_fetched(const struct work *work, const struct eb_index_file *file, int fd, eb_error *error) {
  uint8_t digest[EB_SHA256_BYTES];
  eb_feed feed = eb_feed_of_fd(fd);
  if (lseek(fd, 0, SEEK_SET) < 0) return eb_fail(error, EB_IO, "", "cannot read %s again", file->name);
  eb_status status = eb_feed_hashed(&feed, file->size, work->install->cpu->sha256, NULL, digest, error);
  if (status) return status;
  if (memcmp(digest, file->sha256, sizeof digest) == 0 && lseek(fd, 0, SEEK_SET) == 0) return EB_OK;
  return eb_fail(error, EB_REFUSED, EB_HINT_DAMAGED, "%s is not the file that release.json names (SHA-256)",
                 file->name);
}

/* *arrived: all of it is there, right or wrong. */
static eb_status fetch_from(struct work *work, const struct eb_index_file *file, const char *name, int fd, uint64_t at,
                            bool *arrived, eb_error *error) {
  eb_status status = fetch(work, file, name, fd, at, error);
  *arrived = !status;
  return status ? status : check_fetched(work, file, fd, error);
}

static eb_status install_delta(struct work *work, const struct eb_index_file *file, eb_error *error) {
  char name[EB_ID_TEXT];
  int fd = NO_FILE;
  uint64_t at;
  bool arrived = false;
  eb_digest_text(file->sha256, name);
  eb_status status = begin_partial(work, file, name, &fd, &at, error);
  if (!status) status = fetch_from(work, file, name, fd, at, &arrived, error);
  /* After a power cut what had arrived may be zeros that nobody wrote. */
  if (status == EB_REFUSED && at) status = fetch_from(work, file, name, fd, 0, &arrived, error);
  eb_feed feed = eb_feed_of_fd(fd);
  if (!status) status = eb_install_delta(work->install, &feed, error);
  if (fd >= 0) close(fd);
  /* Whole, it has served; wrong, it must not be gone on with. */
  if (arrived) eb_disk_remove(&work->install->store->partial, name, NULL);
  return status;
}

static eb_status install_whole(struct work *work, eb_error *error) {
  eb_status status;
  do {
    eb_remote_file(work->remote, work->index->bundle.name, work->index->bundle.size);
    eb_feed feed = eb_remote_feed(work->remote);
    status = eb_install_archive(work->install, &feed, error);
  } while (status && work->install->stale);
  /* What the installer saw of a line that failed is less than what the remote knows. */
  if (status == EB_IO && work->remote->error.status) *error = work->remote->error;
  return status;
}

/* What the delta failed at is not the release's fault, unless it is: then the whole one fails at it again. */
static eb_status install(struct work *work, eb_error *error) {
  const struct eb_index_delta *delta = find_delta(work);
  if (!delta) return install_whole(work, error);
  eb_status status = install_delta(work, &delta->file, error);
  work->follow->by_delta = !status;
  bool not_to_be_had = status == EB_IO && work->remote->lasting;
  if (status != EB_REFUSED && status != EB_UNSUPPORTED && !not_to_be_had) return status;
  work->follow->warning = *error;
  return install_whole(work, error);
}

/* Whether the store has lost something of the release `id`. It takes long to see: only one that crashes is asked. */
static bool is_damaged(const struct work *work, const char *id) {
  struct eb_head *head = work->install->head;
  bool holds;
  if (eb_store_head(work->install->store, id, head, NULL) || eb_head_parse(head, NULL)) return true;
  return eb_store_holds_all(work->install->store, &head->manifest, &holds, NULL) || !holds;
}

static eb_status run(struct work *work, eb_error *error) {
  char id[EB_ID_TEXT];
  eb_status status = read_index(work, error);
  if (status) return status;
  eb_digest_text(work->index->id, id);
  bool current = work->found && strcmp(id, work->state.current) == 0;
  work->follow->up_to_date = current && !(work->state.crashes && is_damaged(work, id));
  if (work->follow->up_to_date) return eb_install_settle(work->install, error);
  struct eb_named_release release = {work->index->name, work->state.target, id, work->index->release};
  eb_keys_forget(work->install->keys, &work->state);
  if (!current) status = eb_install_allows(&work->state, &release, error);
  work->install->named = id;
  return status ? status : install(work, error);
}

eb_status eb_follow_run(struct eb_follow *follow, struct eb_install *install_, eb_error *error) {
  struct work work = {.follow = follow, .install = install_};
  struct eb_arena memory;
  size_t size = eb_align_up(sizeof *work.remote) + eb_align_up(sizeof *work.index) + eb_align_up(EB_INDEX_BYTES_MAX) +
                eb_align_up(EB_TRUST_BYTES_MAX);
  eb_status status = eb_arena_open(&memory, size, error);
  if (status) return status;
  work.remote = eb_arena_take(&memory, sizeof *work.remote);
  work.index = eb_arena_take(&memory, sizeof *work.index);
  work.text = eb_arena_take(&memory, EB_INDEX_BYTES_MAX);
  work.trust = eb_arena_take(&memory, EB_TRUST_BYTES_MAX);
  eb_remote_open(work.remote, follow->base, follow->patience);
  status = run(&work, error);
  follow->fetched = work.remote->fetched;
  follow->connections = work.remote->connections;
  eb_remote_close(work.remote);
  eb_arena_close(&memory);
  return status;
}
