/* Laid under a process (LD_PRELOAD): gives system calls the rules of shared file systems, as $RULES names them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

static int ruled(const char *name) {
    const char *rules = getenv("RULES");
    return rules && strstr(rules, name);
}

/* NFS: a lock of one writer only on what is open for writing (flock(2)); `nolock`: none at all; `alone`: everybody gets it. */
int flock(int fd, int how) {
    if (ruled("nolock")) { errno = ENOLCK; return -1; }
    if (ruled("alone")) return 0;
    if (ruled("nfs") && (how & LOCK_EX) && (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY) { errno = EBADF; return -1; }
    return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(fd, how);
}

/* CIFS and some in user space: a folder can't be synced. */
int fsync(int fd) {
    struct stat found;
    if (ruled("nosync") && fstat(fd, &found) == 0 && S_ISDIR(found.st_mode)) { errno = EINVAL; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
