/* Following a published release (SPEC 13): read its index, take the delta or the whole bundle, install it. */
#ifndef EB_FOLLOW_H
#define EB_FOLLOW_H

#include "index.h"
#include "install_delta.h"
#include "remote.h"

struct eb_follow {
  const char *base;   /* a folder, or a URL */
  const char *name;   /* what the index must be of; NULL: whatever it is */
  const char *target; /* for a name that nothing is installed under; may be NULL */
  struct eb_remote_patience patience;
  /* What was done. */
  bool up_to_date;
  bool by_delta;
  bool new_trust;   /* a newer trust file was taken */
  uint64_t fetched; /* bytes */
  uint32_t connections;
  eb_error warning; /* why the delta was not taken */
};

/* `install` was opened for a store that is locked, with a trust file; its head tells what was installed. When it is up
 * to date nothing is written. */
eb_status eb_follow_run(struct eb_follow *follow, struct eb_install *install, eb_error *error);

#endif
