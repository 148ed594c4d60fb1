/* Preloaded into a server that has no option for an address: whatever it binds, it binds to the
 * IPv4 loopback address in $LOOPBACK_BIND, as a mapped address where the socket is of IPv6.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int bind(int fd, const struct sockaddr *wanted, socklen_t size) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "bind");
    const char *address = getenv("LOOPBACK_BIND");
    struct sockaddr_storage confined = {0};
    if (!address || size > sizeof confined) return real(fd, wanted, size);
    memcpy(&confined, wanted, size);
    if (wanted->sa_family == AF_INET) {
        inet_pton(AF_INET, address, &((struct sockaddr_in *)&confined)->sin_addr);
    } else if (wanted->sa_family == AF_INET6) {
        struct in6_addr *host = &((struct sockaddr_in6 *)&confined)->sin6_addr;
        memset(host, 0, sizeof *host);
        host->s6_addr[10] = host->s6_addr[11] = 0xff;
        inet_pton(AF_INET, address, &host->s6_addr[12]);
    }
    return real(fd, (struct sockaddr *)&confined, size);
}
