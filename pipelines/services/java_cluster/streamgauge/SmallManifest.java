package streamgauge;

import java.util.Collection;
import org.apache.flink.contrib.streaming.state.RocksDBOptionsFactory;
import org.rocksdb.ColumnFamilyOptions;
import org.rocksdb.DBOptions;

/**
 * Keeps RocksDB's manifest small. It is a log of every file that came and went, of which each
 * checkpoint has a copy; with a checkpoint a second it grows by 100 MB a day, and RocksDB starts a
 * new one only at 1 GB.
 */
public final class SmallManifest implements RocksDBOptionsFactory {
  private static final long LARGEST = 128 * 1024;

  @Override
  public DBOptions createDBOptions(DBOptions current, Collection<AutoCloseable> toClose) {
    return current.setMaxManifestFileSize(LARGEST);
  }

  @Override
  public ColumnFamilyOptions createColumnOptions(
      ColumnFamilyOptions current, Collection<AutoCloseable> toClose) {
    return current;
  }
}
