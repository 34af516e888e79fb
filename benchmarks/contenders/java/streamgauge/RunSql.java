package streamgauge;

import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.flink.configuration.GlobalConfiguration;
import org.apache.flink.table.api.EnvironmentSettings;
import org.apache.flink.table.api.TableEnvironment;

/**
 * Runs the statements of a file, each to its end: what the SQL client does with {@code -f}, which the wheel of the distribution does not carry
 * whole. Arguments: the folder with Flink's configuration, the file. Ends with code 1 and the stack trace when a statement fails.
 */
public final class RunSql {
    private RunSql() {}

    public static void main(String[] args) throws Exception {
        EnvironmentSettings settings =
                EnvironmentSettings.newInstance().inStreamingMode().withConfiguration(GlobalConfiguration.loadConfiguration(args[0])).build();
        TableEnvironment tables = TableEnvironment.create(settings);
        for (String statement : Files.readString(Path.of(args[1])).split(";\\s*\n")) {
            if (!statement.isBlank()) {
                tables.executeSql(statement).await();
            }
        }
    }
}
