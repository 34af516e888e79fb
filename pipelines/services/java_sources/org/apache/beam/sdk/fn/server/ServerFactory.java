package org.apache.beam.sdk.fn.server;

import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;
import org.apache.beam.model.pipeline.v1.Endpoints;
import org.apache.beam.sdk.fn.channel.SocketAddressFactory;
import org.apache.beam.vendor.grpc.v1p69p0.io.grpc.BindableService;
import org.apache.beam.vendor.grpc.v1p69p0.io.grpc.Server;
import org.apache.beam.vendor.grpc.v1p69p0.io.grpc.ServerInterceptors;
import org.apache.beam.vendor.grpc.v1p69p0.io.grpc.netty.NettyServerBuilder;

/**
 * Streamgauge's replacement for the class of this name in Beam, put before it on the class path: its
 * servers listen at the address that they announce. Beam's announce "localhost" but listen, without
 * any authentication, on every interface of the machine. And they ask their clients for signs of
 * life: a worker that is frozen, or behind a cut network, keeps its connection, and its bundle would
 * wait for ever; without an answer the bundle fails after half a minute.
 */
public abstract class ServerFactory {

  private static final int KEEP_ALIVE_S = 20;
  private static final int ASK_AFTER_S = 10;
  private static final int ANSWER_WITHIN_S = 20;

  public static ServerFactory createDefault() {
    return new InetSocketAddressServerFactory(null, () -> 0);
  }

  public static ServerFactory createWithUrlFactory(UrlFactory urlFactory) {
    return new InetSocketAddressServerFactory(urlFactory, () -> 0);
  }

  public static ServerFactory createWithPortSupplier(Supplier<Integer> portSupplier) {
    return new InetSocketAddressServerFactory(null, portSupplier);
  }

  public static ServerFactory createWithUrlFactoryAndPortSupplier(
      UrlFactory urlFactory, Supplier<Integer> portSupplier) {
    return new InetSocketAddressServerFactory(urlFactory, portSupplier);
  }

  /** Starts a server at a port of its choice and puts its address into the builder. */
  public abstract Server allocateAddressAndCreate(
      List<BindableService> services, Endpoints.ApiServiceDescriptor.Builder builder)
      throws IOException;

  /** Starts a server at the address of the descriptor. */
  public abstract Server create(
      List<BindableService> services, Endpoints.ApiServiceDescriptor serviceDescriptor)
      throws IOException;

  /** Servers on TCP. */
  public static class InetSocketAddressServerFactory extends ServerFactory {
    private final UrlFactory urlFactory;
    private final Supplier<Integer> ports;

    /** A null urlFactory announces the loopback address, and only that is listened at. */
    private InetSocketAddressServerFactory(UrlFactory urlFactory, Supplier<Integer> ports) {
      this.urlFactory = urlFactory;
      this.ports = ports;
    }

    @Override
    public Server allocateAddressAndCreate(
        List<BindableService> services, Endpoints.ApiServiceDescriptor.Builder descriptor)
        throws IOException {
      InetAddress loopback = InetAddress.getLoopbackAddress();
      // Who makes URLs of their own wants to be reached from elsewhere.
      InetSocketAddress address =
          urlFactory == null
              ? new InetSocketAddress(loopback, ports.get())
              : new InetSocketAddress(ports.get());
      Server server = start(services, address);
      UrlFactory urls = urlFactory == null ? UrlFactory.createDefault() : urlFactory;
      descriptor.setUrl(urls.createUrl(loopback.getHostName(), server.getPort()));
      return server;
    }

    @Override
    public Server create(
        List<BindableService> services, Endpoints.ApiServiceDescriptor descriptor)
        throws IOException {
      java.net.SocketAddress address = SocketAddressFactory.createFrom(descriptor.getUrl());
      if (!(address instanceof InetSocketAddress)) {
        throw new IllegalArgumentException("Expected host:port, got " + descriptor.getUrl());
      }
      return start(services, (InetSocketAddress) address);
    }

    private static Server start(List<BindableService> services, InetSocketAddress address)
        throws IOException {
      // No bound on messages here: the layers above have theirs.
      NettyServerBuilder builder =
          NettyServerBuilder.forAddress(address)
              .maxInboundMessageSize(Integer.MAX_VALUE)
              .permitKeepAliveTime(KEEP_ALIVE_S, TimeUnit.SECONDS)
              .keepAliveTime(ASK_AFTER_S, TimeUnit.SECONDS)
              .keepAliveTimeout(ANSWER_WITHIN_S, TimeUnit.SECONDS);
      for (BindableService service : services) {
        builder.addService(
            ServerInterceptors.intercept(service, GrpcContextHeaderAccessorProvider.interceptor()));
      }
      return builder.build().start();
    }
  }

  /** Makes the address that clients are told. */
  @FunctionalInterface
  public interface UrlFactory {
    String createUrl(String address, int port);

    static UrlFactory createDefault() {
      return (host, port) -> host + ":" + port;
    }
  }
}
