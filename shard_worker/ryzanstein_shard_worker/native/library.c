/* What the library says about itself. */

#ifndef RZ_SOURCE_DIGEST
#define RZ_SOURCE_DIGEST ""
#endif

/* Hash of the sources that this library was built from; native/library.py compares. */
__attribute__((visibility("default"))) const char *rz_source_digest(void) { return RZ_SOURCE_DIGEST; }
