package streamgauge;

import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.util.Collections;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.Set;
import java.util.UUID;
import org.apache.beam.model.pipeline.v1.RunnerApi.Pipeline;
import org.apache.beam.runners.flink.FlinkPipelineOptions;
import org.apache.beam.runners.flink.FlinkStreamingPortablePipelineTranslator;
import org.apache.beam.runners.flink.FlinkStreamingPortablePipelineTranslator.StreamingTranslationContext;
import org.apache.beam.runners.fnexecution.provisioning.JobInfo;
import org.apache.beam.sdk.io.FileSystems;
import org.apache.beam.sdk.metrics.MetricsEnvironment;
import org.apache.beam.sdk.util.construction.PipelineOptionsTranslation;
import org.apache.beam.vendor.grpc.v1p69p0.com.google.protobuf.Message;
import org.apache.beam.vendor.grpc.v1p69p0.com.google.protobuf.Struct;
import org.apache.beam.vendor.grpc.v1p69p0.com.google.protobuf.util.JsonFormat;
import org.apache.flink.api.dag.Transformation;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/**
 * Runs the portable pipeline of an uploaded jar on the Flink session cluster that loads it. The jar
 * holds the pipeline and its options as JSON and no classes: Beam is on the cluster's class path.
 *
 * <p>Differs from Beam's own entry point, FlinkPipelineRunner, in two ways. Sources get an operator
 * id of their own: Flink would make one up from the graph around them, which depends on the
 * parallelism, so that a savepoint taken with another parallelism would not fit. And how many
 * checkpoints may fail in a row is left to Flink's configuration: Beam sets it to none.
 */
public final class SubmittedPipeline {
  private SubmittedPipeline() {}

  public static void main(String[] args) throws Exception {
    Pipeline pipeline = read("pipeline.json", Pipeline.newBuilder()).build();
    Struct given = read("pipeline-options.json", Struct.newBuilder()).build();
    FlinkPipelineOptions options =
        PipelineOptionsTranslation.fromProto(given).as(FlinkPipelineOptions.class);
    options.setFlinkMaster(FlinkPipelineOptions.AUTO);
    FileSystems.setDefaultPipelineOptions(options);
    MetricsEnvironment.setMetricsSupported(false);

    String name = options.getJobName();
    JobInfo job =
        JobInfo.create(
            name + "_" + UUID.randomUUID(), name, "", PipelineOptionsTranslation.toProto(options));
    FlinkStreamingPortablePipelineTranslator translator =
        new FlinkStreamingPortablePipelineTranslator();
    StreamingTranslationContext context =
        translator.createTranslationContext(job, options, null, Collections.emptyList());
    translator.translate(context, translator.prepareForTranslation(pipeline));
    StreamExecutionEnvironment environment = context.getExecutionEnvironment();
    nameSources(environment);
    int tolerable = Integer.parseInt(args[0]);
    environment.getCheckpointConfig().setTolerableCheckpointFailureNumber(tolerable);
    environment.execute(name);
  }

  /** Each source is called after the operator that reads it, whose id Beam takes from the pipeline. */
  private static void nameSources(StreamExecutionEnvironment environment) {
    Set<Transformation<?>> all = new LinkedHashSet<>();
    for (Transformation<?> registered : environment.getTransformations()) {
      all.addAll(registered.getTransitivePredecessors());
    }
    for (Transformation<?> reader : all) {
      for (Transformation<?> source : sourcesOf(reader)) {
        source.setUid("source of " + reader.getUid());
      }
    }
  }

  /** The inputs without a name and without inputs; between them and a reader with one there may be exchanges. */
  private static Set<Transformation<?>> sourcesOf(Transformation<?> reader) {
    Set<Transformation<?>> found = new HashSet<>();
    if (reader.getUid() == null) {
      return found;
    }
    for (Transformation<?> input : reader.getInputs()) {
      Transformation<?> at = input;
      while (at.getUid() == null && at.getInputs().size() == 1) {
        at = at.getInputs().get(0);
      }
      if (at.getUid() == null && at.getInputs().isEmpty()) {
        found.add(at);
      }
    }
    return found;
  }

  private static <T extends Message.Builder> T read(String name, T builder) throws IOException {
    ClassLoader uploaded = Thread.currentThread().getContextClassLoader();
    try (InputStream content = uploaded.getResourceAsStream(name)) {
      if (content == null) {
        throw new IOException("The jar has no " + name + ".");
      }
      String json = new String(content.readAllBytes(), StandardCharsets.UTF_8);
      JsonFormat.parser().ignoringUnknownFields().merge(json, builder);
      return builder;
    }
  }
}
