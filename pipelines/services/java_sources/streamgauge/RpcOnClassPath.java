package streamgauge;

import org.apache.flink.configuration.Configuration;
import org.apache.flink.runtime.rpc.RpcSystem;
import org.apache.flink.runtime.rpc.RpcSystemLoader;

/**
 * Takes Flink's RPC system from the class path. Flink's own loader unpacks a jar of 22 MB at each
 * start, and gives it a class loader of its own, whose 1,400 classes no archive can share between
 * starts. If this one fails, Flink goes on with its own.
 */
public final class RpcOnClassPath implements RpcSystemLoader {
  @Override
  public int getLoadPriority() {
    return -1; // before Flink's, whose priority is 0
  }

  @Override
  public RpcSystem loadRpcSystem(Configuration configuration) {
    try {
      return (RpcSystem)
          Class.forName("org.apache.flink.runtime.rpc.pekko.PekkoRpcSystem")
              .getConstructor()
              .newInstance();
    } catch (ReflectiveOperationException error) {
      throw new IllegalStateException(error);
    }
  }
}
