/* What the driver of mutants (tamper.c) asks of a store: to install into it, and to be as it was afterwards. */
#ifndef EB_TAMPER_H
#define EB_TAMPER_H

#include "crypto.h"
#include "status.h"

/* A bundle or a delta in memory, read front to back. */
struct tamper_source {
  eb_bytes left;
};
eb_feed tamper_feed(struct tamper_source *source);

/* Ends the driver: the harness itself does not work. */
void tamper_die(const char *what);
void tamper_require(bool holds, const char *what);

/* A store at `path` in which `base` is installed; what may be there goes. An empty `base`: an empty store. */
void tamper_store_make(const char *path, eb_bytes base, eb_bytes trust);

/* Installs a bundle or a delta. After a refusal the store must be as it was, but for files that arrived whole and are what
 * their names say, and it is made so. The same where *unchanged: it is what was current, and whole. Otherwise `digest` is
 * the SHA-256 of the head that became current, whose files were verified once more. */
eb_status tamper_store_install(eb_bytes file, eb_bytes trust, uint8_t digest[EB_SHA256_BYTES], bool *unchanged,
                               eb_error *error);

#endif
