#include "store.h"

#include <string.h>
#include <unistd.h>

#include "feed.h"

static const char again[] = "install the release again, or go back with: edgebuild-run rollback NAME";

const struct eb_store eb_store_closed = {
    .root = {.fd = -1},
    .blobs = {.fd = -1},
    .partial = {.fd = -1},
    .releases = {.fd = -1},
    .functions = {.fd = -1},
    .trusts = {.fd = -1},
    .lock = -1,
    .state_lock = -1,
};

/* A folder that nothing that runs needs: where it is not, it is empty. */
static eb_status open_spare(const struct eb_store *store, const char *name, bool make, struct eb_folder *folder,
                            eb_error *error) {
  if (make || eb_disk_has(&store->root, name)) return eb_disk_folder(&store->root, name, make, folder, error);
  folder->name = name;
  return EB_OK;
}

eb_status eb_store_open(struct eb_store *store, const char *path, bool make, const struct eb_cpu *cpu,
                        eb_error *error) {
  *store = eb_store_closed;
  store->path = path;
  store->accelerated = cpu->sha256;
  eb_status status = eb_disk_root(path, make, &store->root, error);
  /* Whoever made it may have been ended before it was durable. */
  if (!status && make && !eb_disk_has(&store->root, "blobs")) status = eb_disk_sync_parent(path, &store->root, error);
  if (!status) status = eb_disk_folder(&store->root, "blobs", make, &store->blobs, error);
  if (!status) status = open_spare(store, "partial", make, &store->partial, error);
  if (!status) status = eb_disk_folder(&store->root, "releases", make, &store->releases, error);
  if (!status) status = open_spare(store, "trusts", make, &store->trusts, error);
  return status ? status : eb_disk_folder(&store->root, "functions", make, &store->functions, error);
}

void eb_store_close(struct eb_store *store) {
  eb_disk_close(&store->root);
  eb_disk_close(&store->blobs);
  eb_disk_close(&store->partial);
  eb_disk_close(&store->releases);
  eb_disk_close(&store->functions);
  eb_disk_close(&store->trusts);
  if (store->lock >= 0) close(store->lock);
  if (store->state_lock >= 0) close(store->state_lock);
  store->lock = store->state_lock = -1;
}

static eb_status remove_unfinished(void *context, const char *name, eb_error *error) {
  return strncmp(name, EB_NEW, strlen(EB_NEW)) == 0 ? eb_disk_remove(context, name, error) : EB_OK;
}

static eb_status begin_state(struct eb_store *store, eb_error *error) {
  return eb_disk_lock(&store->root, "state-lock", &store->state_lock, error);
}

static void leave_state(struct eb_store *store) {
  if (store->state_lock >= 0) close(store->state_lock);
  store->state_lock = -1;
}

eb_status eb_store_lock(struct eb_store *store, eb_error *error) {
  eb_status status = eb_disk_lock(&store->root, "lock", &store->lock, error);
  if (!status) status = eb_disk_list(&store->root, remove_unfinished, &store->root, error);
  if (!status) status = eb_disk_list(&store->releases, remove_unfinished, &store->releases, error);
  if (!status) status = eb_disk_list(&store->trusts, remove_unfinished, &store->trusts, error);
  if (!status) status = begin_state(store, error);
  if (status) return status;
  status = eb_disk_list(&store->functions, remove_unfinished, &store->functions, error);
  leave_state(store);
  return status;
}

eb_status eb_store_state(const struct eb_store *store, const char *name, struct eb_state *state, bool *found,
                         eb_error *error) {
  char text[EB_STATE_BYTES_MAX + 1];
  size_t size;
  *found = false;
  memset(state, 0, sizeof *state);
  if (!eb_is_name(name)) {
    return eb_fail(error, EB_INPUT, "edgebuild-run status lists the names", "%.80s is no name of a function", name);
  }
  eb_status status = eb_disk_read(&store->functions, name, text, EB_STATE_BYTES_MAX, &size, found, error);
  if (status || !*found) return status;
  status = eb_state_parse((eb_bytes){text, size}, name, state, error);
  *found = !status && state->current[0];
  return status;
}

eb_status eb_store_state_begin(struct eb_store *store, const char *name, struct eb_state *state, bool *found,
                               eb_error *error) {
  eb_status status = begin_state(store, error);
  if (status) return status;
  status = eb_store_state(store, name, state, found, error);
  if (status) leave_state(store);
  return status;
}

eb_status eb_store_state_end(struct eb_store *store, const char *name, const struct eb_state *state, eb_error *error) {
  char text[EB_STATE_BYTES_MAX];
  eb_status status = EB_OK;
  if (state) {
    size_t size = eb_state_text(state, text);
    status = eb_disk_put(&store->functions, name, (eb_bytes){text, size}, 0600, error);
  }
  leave_state(store);
  return status;
}

static eb_status check_end(const eb_feed *feed, const char *id, eb_error *error) {
  uint8_t byte;
  size_t more;
  eb_status status = eb_feed_some(feed, &byte, 1, &more, error);
  if (status || more == 0) return status;
  return eb_fail(error, EB_REFUSED, again, "releases/%s in the store has bytes behind its end", id);
}

eb_status eb_store_head_feed(const struct eb_store *store, const char *id, int *fd, eb_feed *feed, eb_error *error) {
  uint64_t size;
  eb_status status = eb_disk_open(&store->releases, id, fd, &size, error);
  if (status) return status;
  if (*fd < 0) return eb_fail(error, EB_REFUSED, again, "the release %.16s is not in the store", id);
  *feed = eb_feed_of_fd(*fd);
  return EB_OK;
}

eb_status eb_store_head(const struct eb_store *store, const char *id, struct eb_head *head, eb_error *error) {
  int fd;
  eb_feed feed;
  eb_status status = eb_store_head_feed(store, id, &fd, &feed, error);
  if (status) return status;
  status = eb_head_read(head, &feed, store->accelerated, error);
  if (!status) status = check_end(&feed, id, error);
  close(fd);
  if (status == EB_REFUSED || (!status && strcmp(head->id, id) != 0)) {
    return eb_fail(error, EB_REFUSED, again, "releases/%s in the store was damaged or changed", id);
  }
  return status;
}

static eb_status open_blob(void *context, const char *path, uint64_t size, const uint8_t sha256[EB_SHA256_BYTES],
                           eb_feed *feed, eb_error *error) {
  const struct eb_store *store = context;
  char name[EB_ID_TEXT];
  int fd;
  uint64_t found;
  eb_digest_text(sha256, name);
  eb_status status = eb_disk_open(&store->blobs, name, &fd, &found, error);
  if (status) return status;
  *feed = eb_feed_of_fd(fd);
  if (fd >= 0 && found == size) return EB_OK;
  if (fd >= 0) close(fd);
  return eb_fail(error, EB_REFUSED, again, "the store's file for %s is %s: blobs/%.16s", path,
                 fd < 0 ? "missing" : "damaged", name);
}

static void close_blob(void *context, eb_feed *feed) {
  (void)context;
  close((int)(intptr_t)feed->context);
}

eb_files eb_store_files(struct eb_store *store, const char *id) {
  return (eb_files){.open = open_blob, .close = close_blob, .context = store, .id = id};
}

eb_status eb_store_holds(const struct eb_store *store, const struct eb_file *file, bool *holds, eb_error *error) {
  char name[EB_ID_TEXT];
  uint8_t digest[EB_SHA256_BYTES];
  int fd;
  uint64_t size;
  *holds = false;
  eb_digest_text(file->sha256, name);
  eb_status status = eb_disk_open(&store->blobs, name, &fd, &size, error);
  /* What is no file is replaced by one. */
  if (status == EB_REFUSED || fd < 0) return status == EB_REFUSED ? EB_OK : status;
  if (size == file->size) {
    eb_feed feed = eb_feed_of_fd(fd);
    status = eb_feed_hashed(&feed, size, store->accelerated, NULL, digest, error);
    *holds = !status && memcmp(digest, file->sha256, sizeof digest) == 0;
  }
  close(fd);
  /* What changes while it is read, or cannot be read, is not there: it is written again. */
  return EB_OK;
}

eb_status eb_store_holds_all(const struct eb_store *store, const struct eb_manifest *manifest, bool *holds,
                             eb_error *error) {
  eb_status status = EB_OK;
  *holds = true;
  for (uint32_t i = 0; !status && *holds && i < manifest->file_count; i++) {
    status = eb_store_holds(store, &manifest->file[i], holds, error);
  }
  return status;
}

static eb_status size_at_most(const struct eb_folder *folder, const char *name, uint64_t most, uint64_t *size,
                              eb_error *error) {
  int fd;
  eb_status status = eb_disk_open(folder, name, &fd, size, error);
  if (fd >= 0) close(fd);
  if (*size > most) *size = 0;
  return status == EB_REFUSED ? EB_OK : status;
}

eb_status eb_store_arrived(const struct eb_store *store, const struct eb_file *file, uint64_t *bytes, eb_error *error) {
  char name[EB_ID_TEXT];
  eb_digest_text(file->sha256, name);
  eb_status status = size_at_most(&store->blobs, name, file->size, bytes, error);
  if (status || *bytes == file->size) return status;
  return size_at_most(&store->partial, name, file->size, bytes, error);
}
