// Judges grey images by an exported ONNX file with onnxruntime in C++17.
//
//     g++ -std=c++17 -O2 -I ONNXRUNTIME/include run_onnx.cpp -L ONNXRUNTIME/lib -lonnxruntime -o run_onnx
//     run_onnx inspector.onnx IMAGE.pgm [IMAGE.pgm ...]
//
// prints a line of JSON for each image, a binary PGM of 8 bits and the file's size: score, decision, number of defect
// pixels. It writes IMAGE.pgm.mask.pgm for a defective image. Exit status: 0 all are good, 1 one is defective, 2 one could not be judged.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
    int64_t height, width;
    std::vector<uint8_t> pixels;
};

Image read_pgm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    int64_t width = 0, height = 0, white = 0;
    if (!(file >> magic >> width >> height >> white) || magic != "P5" || white != 255 || width < 1 || height < 1)
        throw std::runtime_error("is no binary PGM of 8 bits without comments");
    file.get();
    Image image{height, width, std::vector<uint8_t>(height * width)};
    if (!file.read(reinterpret_cast<char*>(image.pixels.data()), height * width))
        throw std::runtime_error("ends before its last pixel");
    return image;
}

// Whether the image is defective.
bool judge(Ort::Session& session, const std::string& path) {
    const auto size = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
    Image image = read_pgm(path);
    if (image.height != size[1] || image.width != size[2])
        throw std::runtime_error("is not of the file's size; continue it as input.padding of FILE.json says");
    const std::array<int64_t, 3> shape{1, image.height, image.width};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    auto input = Ort::Value::CreateTensor<uint8_t>(
        memory, image.pixels.data(), image.pixels.size(), shape.data(), shape.size());
    const char* inputs[] = {"image"};
    const char* outputs[] = {"score", "defective", "mask"};
    auto found = session.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, outputs, 3);
    const bool is_defective = *found[1].GetTensorData<bool>();
    const bool* mask = found[2].GetTensorData<bool>();
    const auto num_px = std::count(mask, mask + image.pixels.size(), true);
    std::printf("{\"image\": \"%s\", \"score\": %.7g, \"defective\": %s, \"defect_px\": %lld}\n", path.c_str(),
                *found[0].GetTensorData<float>(), is_defective ? "true" : "false", static_cast<long long>(num_px));
    if (is_defective) {
        std::ofstream file(path + ".mask.pgm", std::ios::binary);
        file << "P5\n" << image.width << " " << image.height << "\n255\n";
        for (size_t i = 0; i < image.pixels.size(); ++i) file.put(mask[i] ? '\xff' : '\0');
    }
    return is_defective;
}

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: %s inspector.onnx IMAGE.pgm [IMAGE.pgm ...]\n", argv[0]);
        return 2;
    }
    int status = 0;
    try {
        Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "run_onnx");
        Ort::Session session(env, argv[1], Ort::SessionOptions{});
        for (int i = 2; i < argc; ++i) {
            try {
                status = std::max(status, judge(session, argv[i]) ? 1 : 0);
            } catch (const std::exception& error) {
                std::fprintf(stderr, "%s %s\n", argv[i], error.what());
                status = 2;
            }
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: %s\n", argv[1], error.what());
        return 2;
    }
    return status;
}
