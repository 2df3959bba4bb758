/* Stands for libnvinfer, libnvonnxparser and libnvinfer_plugin, so that TensorRT's Python bindings
 * can be imported where there is no GPU. Every factory returns null; nothing of it is called. */
#define NOTHING(name) void *name(void) { return 0; }
NOTHING(createInferBuilder_INTERNAL)
NOTHING(createInferRefitter_INTERNAL)
NOTHING(createInferRuntime_INTERNAL)
NOTHING(createNvOnnxParserRefitter_INTERNAL)
NOTHING(createNvOnnxParser_INTERNAL)
NOTHING(getBuilderPluginRegistry)
NOTHING(getNvOnnxParserVersion)
NOTHING(getPluginRegistry)
NOTHING(getInferLibVersion)
NOTHING(getLogger)
NOTHING(initLibNvInferPlugins)
