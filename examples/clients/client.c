/* cc -o client client.c && ./client TOPIC < BODY: standard input as one record, onto flash before it returns. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void base64(FILE *out, const unsigned char *bytes, size_t length) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t at = 0; at < length; at += 3) {
        size_t left = length - at;
        unsigned long bits = bytes[at] << 16 | (left > 1 ? bytes[at + 1] << 8 : 0) | (left > 2 ? bytes[at + 2] : 0);
        fputc(digits[bits >> 18], out);
        fputc(digits[bits >> 12 & 63], out);
        fputc(left > 1 ? digits[bits >> 6 & 63] : '=', out);
        fputc(left > 2 ? digits[bits & 63] : '=', out);
    }
}

int main(int argc, char **argv) {
    static unsigned char body[65536];
    char answer[1024] = "";
    struct sockaddr_un agent = {.sun_family = AF_UNIX};
    const char *path = getenv("BACKHAUL_SOCKET");
    strncpy(agent.sun_path, path ? path : "/run/backhaul/backhaul.sock", sizeof agent.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (argc != 2 || connect(fd, (struct sockaddr *)&agent, sizeof agent)) return 75; /* EX_TEMPFAIL */
    FILE *to = fdopen(dup(fd), "w"), *from = fdopen(fd, "r");
    /* Base64, so that nothing needs escaping; the topic is taken as it is: letters, digits and slashes. */
    fprintf(to, "{\"put\":{\"topic\":\"%s\",\"wait\":\"committed\",\"base64\":\"", argv[1]);
    base64(to, body, fread(body, 1, sizeof body, stdin));
    fprintf(to, "\"}}\n");
    if (fflush(to) || !fgets(answer, sizeof answer, from)) return 75;
    fputs(answer, stdout);
    return strncmp(answer, "{\"committed\"", 12) ? 1 : 0;
}
