package org.apache.beam.runners.fnexecution.control;

import java.lang.reflect.AccessibleObject;
import java.lang.reflect.Field;
import java.lang.reflect.Method;
import java.util.UUID;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.Lock;
import java.util.concurrent.locks.ReentrantLock;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.BundleApplication;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.DelayedBundleApplication;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.ProcessBundleResponse;
import org.apache.beam.runners.core.StateInternals;
import org.apache.beam.runners.core.StateInternalsFactory;
import org.apache.beam.runners.core.StateNamespace;
import org.apache.beam.runners.core.StateNamespaces;
import org.apache.beam.runners.core.StateTags;
import org.apache.beam.runners.core.TimerInternals;
import org.apache.beam.runners.core.TimerInternalsFactory;
import org.apache.beam.sdk.coders.Coder;
import org.apache.beam.sdk.state.TimeDomain;
import org.apache.beam.sdk.state.ValueState;
import org.apache.beam.sdk.transforms.windowing.BoundedWindow;
import org.apache.beam.sdk.util.CoderUtils;
import org.apache.beam.sdk.values.WindowedValue;
import org.apache.beam.sdk.values.WindowedValues;
import org.apache.flink.api.common.state.MapState;
import org.joda.time.Instant;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Streamgauge's replacement for the class of this name in Beam's runner, put before it on the class
 * path. It keeps the residuals of splittable DoFns under a few state names that are used again,
 * instead of a new one for every self-checkpoint (Flink keeps each name for ever, Beam issue
 * 27648), and it keeps the milliseconds of resume delays and output watermarks. It also lets the
 * watermark out at the end of every bundle: Beam's operator means to, but compares the bundle's
 * duration with the wrong sign, and what it does instead is too late while other residuals wait.
 *
 * <p>The operator on the other side, {@code ExecutableStageDoFnOperator}, is Beam's own: when the
 * timer {@code id} fires it reads the value state {@code id} of the current key and window.
 */
@SuppressWarnings({"rawtypes", "unchecked"})
public class BundleCheckpointHandlers {

  private static final Logger LOG = LoggerFactory.getLogger(BundleCheckpointHandlers.class);

  private BundleCheckpointHandlers() {}

  /** Keeps each residual in a value state and sets the processing time timer that resumes it. */
  public static class StateAndTimerBundleCheckpointHandler<T> implements BundleCheckpointHandler {

    public static final String SDF_PREFIX = "sdf_checkpoint";

    private final TimerInternalsFactory<T> timers;
    private final StateInternalsFactory<T> states;
    private final Coder<WindowedValue<T>> residualCoder;
    private final Coder windowCoder;
    private final TimerIds timerIds = new TimerIds();

    public StateAndTimerBundleCheckpointHandler(
        TimerInternalsFactory<T> timerInternalsFactory,
        StateInternalsFactory<T> stateInternalsFactory,
        Coder<WindowedValue<T>> residualCoder,
        Coder windowCoder) {
      this.timers = timerInternalsFactory;
      this.states = stateInternalsFactory;
      this.residualCoder = residualCoder;
      this.windowCoder = windowCoder;
    }

    /** Whether a timer was set here, to resume a residual. */
    public static boolean isSdfTimer(String timerId) {
      return timerId.startsWith(SDF_PREFIX);
    }

    @Override
    public void onCheckpoint(ProcessBundleResponse response) {
      Instant now = Instant.now();
      for (DelayedBundleApplication residual : response.getResidualRootsList()) {
        if (!residual.hasApplication()) {
          continue;
        }
        try {
          keep(residual, now);
        } catch (Exception e) {
          throw new RuntimeException("Could not keep the residual of a splittable DoFn", e);
        }
      }
    }

    private void keep(DelayedBundleApplication residual, Instant now) throws Exception {
      BundleApplication application = residual.getApplication();
      WindowedValue<T> value =
          CoderUtils.decodeFromByteArray(residualCoder, application.getElement().toByteArray());
      TimerInternals timerInternals = timers.timerInternalsForKey(value.getValue());
      StateInternals stateInternals = states.stateInternalsForKey(value.getValue());
      Instant resumeAt = now.plus(residual.hasRequestedTimeDelay() ? delayMillis(residual) : 0);
      Instant hold = outputWatermark(application);
      for (Object each : value.getWindows()) {
        BoundedWindow window = (BoundedWindow) each;
        StateNamespace namespace = StateNamespaces.window(windowCoder, window);
        WindowedValue<T> inWindow =
            WindowedValues.of(
                value.getValue(),
                value.getTimestamp(),
                java.util.Collections.singletonList(window),
                value.getPaneInfo());
        Lock lock = timerIds.lock(timerInternals);
        lock.lock(); // the key that state(...) sets has to be the current one until the timer is set
        try {
          String id = timerIds.choose(timerInternals, stateInternals, namespace, residualCoder);
          // Sets the current key, which the write below relies on.
          ValueState<WindowedValue<T>> state =
              stateInternals.state(namespace, StateTags.value(id, residualCoder));
          state.write(inWindow);
          timerInternals.setTimer(
              namespace, id, "", resumeAt, hold, TimeDomain.PROCESSING_TIME);
        } finally {
          lock.unlock();
        }
      }
    }

    private static long delayMillis(DelayedBundleApplication residual) {
      return residual.getRequestedTimeDelay().getSeconds() * 1000
          + residual.getRequestedTimeDelay().getNanos() / 1_000_000;
    }

    /** The least output watermark, in whole milliseconds downwards; unknown ones hold everything. */
    private static Instant outputWatermark(BundleApplication application) {
      long lowest =
          application.getOutputWatermarksMap().values().stream()
              .mapToLong(w -> w.getSeconds() * 1000 + w.getNanos() / 1_000_000)
              .min()
              .orElse(BoundedWindow.TIMESTAMP_MIN_VALUE.getMillis());
      long least = BoundedWindow.TIMESTAMP_MIN_VALUE.getMillis();
      long most = BoundedWindow.TIMESTAMP_MAX_VALUE.getMillis();
      return Instant.ofEpochMilli(Math.max(least, Math.min(most, lowest)));
    }
  }

  /**
   * Names for timers and their states: for each key and window the lowest slot number whose timer
   * is not pending. Where the pending timers cannot be seen (another runner), every name is new.
   */
  private static class TimerIds {
    private static final String SLOT =
        StateAndTimerBundleCheckpointHandler.SDF_PREFIX + ":slot:";

    /** Unique names need a part that differs after a restore, lest they replace restored timers. */
    private final String run = UUID.randomUUID().toString();

    private final AtomicLong next = new AtomicLong();
    private Operator operator;
    private boolean unknown;

    Lock lock(TimerInternals timerInternals) {
      Operator known = operator(timerInternals);
      return known == null ? new ReentrantLock() : known.lock;
    }

    /** The name to use, with the lock held. */
    String choose(
        TimerInternals timerInternals, StateInternals states, StateNamespace namespace, Coder coder)
        throws Exception {
      Operator known = operator(timerInternals);
      if (known == null) {
        return StateAndTimerBundleCheckpointHandler.SDF_PREFIX + ":" + run + ":" + next.getAndIncrement();
      }
      states.state(namespace, StateTags.value(SLOT + 0, coder)); // sets the current key
      for (int slot = 0; ; slot++) {
        // As DoFnOperator.FlinkTimerInternals names timers: family + "+" + id + namespace.
        if (!known.pending().contains("+" + SLOT + slot + namespace.stringKey())) {
          return SLOT + slot;
        }
      }
    }

    private Operator operator(TimerInternals timerInternals) {
      if (operator == null && !unknown) {
        try {
          operator = new Operator(timerInternals);
        } catch (ReflectiveOperationException | RuntimeException e) {
          unknown = true;
          LOG.warn(
              "Cannot see the pending timers of {}; checkpoints of splittable DoFns will grow",
              timerInternals.getClass(),
              e);
        }
      }
      return operator;
    }
  }

  /** What has to be known of the operator (Beam 2.6x to 2.7x on Flink) that made a TimerInternals. */
  private static class Operator {
    final Lock lock;
    private final Object timers;
    private final Field pending;

    Operator(TimerInternals timerInternals) throws ReflectiveOperationException {
      Object operator = field(timerInternals, "this$0").get(timerInternals);
      lock = (Lock) field(operator, "stateBackendLock").get(operator);
      timers = field(operator, "timerInternals").get(operator);
      pending = field(timers, "pendingTimersById");
      if (!(pending.get(timers) instanceof MapState)) {
        throw new NoSuchFieldException("pendingTimersById is no MapState");
      }
      sendWatermarkAfterBundles(operator);
    }

    /**
     * Has the operator compute its output watermark when a bundle has ended: its output has been
     * sent, what it left is held by timers, and none of them has fired yet.
     */
    private static void sendWatermarkAfterBundles(Object operator)
        throws ReflectiveOperationException {
      Field callback = field(operator, "bundleFinishedCallback");
      Method update = member(operator, type -> type.getDeclaredMethod("updateOutputWatermark"));
      Runnable before = (Runnable) callback.get(operator);
      Runnable after =
          () -> {
            if (before != null) {
              before.run();
            }
            try {
              update.invoke(operator);
            } catch (ReflectiveOperationException e) {
              throw new IllegalStateException("Could not send the watermark after a bundle", e);
            }
          };
      callback.set(operator, after);
    }

    MapState<String, ?> pending() throws IllegalAccessException {
      return (MapState<String, ?>) pending.get(timers);
    }

    private static Field field(Object owner, String name) throws ReflectiveOperationException {
      return member(owner, type -> type.getDeclaredField(name));
    }

    /** What the class of an object declares, or one of its superclasses. */
    private static <T extends AccessibleObject> T member(Object owner, Declared<T> declared)
        throws ReflectiveOperationException {
      ReflectiveOperationException missing = null;
      for (Class<?> type = owner.getClass(); type != null; type = type.getSuperclass()) {
        try {
          T found = declared.by(type);
          found.setAccessible(true);
          return found;
        } catch (NoSuchFieldException | NoSuchMethodException e) {
          missing = missing == null ? e : missing;
        }
      }
      throw missing;
    }

    /** How a class is asked for a field or a method of its own. */
    private interface Declared<T> {
      T by(Class<?> type) throws NoSuchFieldException, NoSuchMethodException;
    }
  }
}
