/* Installation from a delta (SPEC 12) against a release that the store has. */
#ifndef EB_INSTALL_DELTA_H
#define EB_INSTALL_DELTA_H

#include "delta.h"
#include "install.h"

/* As eb_install_archive. A delta of another base than a release of the store, or of one that has lost a file, is
 * refused before anything is written. */
eb_status eb_install_delta(struct eb_install *install, const eb_feed *feed, eb_error *error);

/* Whichever of the two the feed gives: a bundle's archive, or a delta. */
eb_status eb_install_feed(struct eb_install *install, const eb_feed *feed, eb_error *error);

#endif
