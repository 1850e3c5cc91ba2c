/* filter compiles the seccomp filter of an OCI configuration with the code of the crun that it is linked to,
 * so that the guest need not: what crun would make of standard input's linux.seccomp goes to standard output.
 */
#include <config.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "libcrun/container.h"
#include "libcrun/seccomp.h"
#include "libcrun/utils.h"

static char text[1 << 20];

int
main (void)
{
  struct libcrun_seccomp_gen_ctx_s gen;
  libcrun_container_t *container;
  libcrun_error_t err = NULL;
  size_t length = fread (text, 1, sizeof text - 1, stdin);

  if (ferror (stdin) || length == sizeof text - 1)
    {
      fprintf (stderr, "filter: cannot read the configuration, or it is too long\n");
      return 1;
    }
  container = libcrun_container_load_from_memory (text, &err);
  if (container == NULL)
    goto fail;
  libcrun_seccomp_gen_ctx_init (&gen, container, false, LIBCRUN_SECCOMP_SKIP_CACHE);
  gen.fd = STDOUT_FILENO;
  if (libcrun_generate_seccomp (&gen, &err) < 0)
    goto fail;
  return 0;

fail:
  fprintf (stderr, "filter: %s\n", err->msg);
  return 1;
}
