/* Classifies 32x32 images with a compiled model. Links the model's .so and nothing else of transc.
   Usage: main [FILE]    FILE: raw little-endian f32, 1024 values per image, each -1 (paper) to 1 (ink) */
#include <stdio.h>
#include "digits_vit.h"

enum { PIXELS = 32 * 32, CLASSES = 10 };

int main(int argc, char **argv) {
    transc_session *session;
    if (transc_open(0, &session) != 0) {
        fprintf(stderr, "open: %s\n", transc_last_error());
        return 1;
    }
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (argc > 1 && !file) {
        perror(argv[1]);
        return 1;
    }
    float image[PIXELS], logits[CLASSES];
    for (int i = 0; i < PIXELS; i++) image[i] = -1.0f; /* no file: an empty sheet */

    const int64_t image_dims[] = {1, 1, 32, 32}, logits_dims[] = {1, CLASSES};
    const transc_tensor in = {"pixel_values", TRANSC_F32, 4, image_dims, image, sizeof image};
    transc_tensor out = {"logits", TRANSC_F32, 2, logits_dims, logits, sizeof logits};

    int count = 0;
    while (file ? fread(image, sizeof image, 1, file) == 1 : count == 0) {
        if (transc_run(session, &in, 1, &out, 1) != 0) {
            fprintf(stderr, "run: %s\n", transc_last_error());
            return 1;
        }
        int best = 0;
        for (int c = 1; c < CLASSES; c++) {
            if (logits[c] > logits[best]) best = c;
        }
        printf("image %d: %d\n", count++, best);
    }
    if (file) fclose(file);
    transc_close(session);
    return 0;
}
